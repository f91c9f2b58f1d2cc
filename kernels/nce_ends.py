"""What comes before and after the passes: stacked sources, sums over rows, gradients of inputs."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["given_rows", "source_images", "src_set", "src_image"])
def nce_stack(
    src,  # [S, B, D] given sources
    trg,  # [B, L, D] targets that the drawn sources come from
    picks,  # [B] int64: a location of each image
    stack,  # [S * B + B, D], out: given sources, then drawn ones
    given_rows,  # S * B
    source_images,  # B
    width,  # D
    src_set,  # strides
    src_image,
    src_feature,
    trg_image,
    trg_location,
    trg_feature,
    TILE: tl.constexpr,
):
    """One program: TILE features of one row. Grid: (S * B + B, tiles of features)."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_feature = feature < width
    if row < given_rows:
        place = src + row // source_images * src_set + row % source_images * src_image
        found = tl.load(place + feature.to(tl.int64) * src_feature, mask=is_feature, other=0.0)
    else:
        image = row - given_rows
        place = trg + image * trg_image + tl.load(picks + image) * trg_location
        found = tl.load(place + feature.to(tl.int64) * trg_feature, mask=is_feature, other=0.0)
    tl.store(stack + row * width + feature, found, mask=is_feature)


@triton.jit(do_not_specialize=["sets", "parts", "source_images"])
def nce_sums(
    row_loss,  # [sets * B] float32: shares of the rows
    row_square,
    loss,  # [sets] float32, out
    mean_sq,  # [sets] float32, out
    totals,  # [parts + 1] float32, out: weighted losses of each part, weighted mean_sq of all sets
    objective,  # [1] float32, out: sum of totals
    sets,
    parts,  # set s counts in part s % parts
    source_images,  # B
    loss_weight,
    mean_sq_weight,
    TILE: tl.constexpr,
):
    """One program: all sums, each in a fixed order. Grid: (1,)."""
    offset = tl.arange(0, TILE)
    squares = tl.sum(tl.zeros([TILE], dtype=tl.float32))
    whole = squares
    for part in range(parts):
        part_loss = tl.sum(tl.zeros([TILE], dtype=tl.float32))
        for set_index in range(part, sets, parts):
            set_loss = tl.zeros([TILE], dtype=tl.float32)
            set_square = tl.zeros([TILE], dtype=tl.float32)
            for start in range(0, source_images, TILE):
                image = start + offset
                place = image.to(tl.int64) + set_index * source_images
                set_loss += tl.load(row_loss + place, mask=image < source_images, other=0.0)
                set_square += tl.load(row_square + place, mask=image < source_images, other=0.0)
            found = tl.sum(set_loss)
            square = tl.sum(set_square)
            tl.store(loss + set_index, found)
            tl.store(mean_sq + set_index, square)
            part_loss += found
            squares += square
        tl.store(totals + part, loss_weight * part_loss)
        whole += loss_weight * part_loss
    tl.store(totals + parts, mean_sq_weight * squares)
    tl.store(objective, whole + mean_sq_weight * squares)


@triton.jit(do_not_specialize=["given_rows", "first_row", "locations"])
def nce_finish(
    grad_stack,  # [S * B + B, D] float32: gradients of stacked sources
    grad_src,  # [S, B, D], out: gradients of the given sources, or None
    grad_trg,  # [B, L, D], in and out: gradients of the targets that were drawn from, or None
    picks,  # [B] int64, or None
    given_rows,  # S * B
    first_row,  # the first row that is wanted
    locations,  # L of grad_trg
    width,  # D
    TILE: tl.constexpr,
):
    """One program: TILE features of one row. Grid: (wanted rows, tiles of features)."""
    row = first_row + tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_feature = feature < width
    found = tl.load(grad_stack + row * width + feature, mask=is_feature, other=0.0)
    if row < given_rows:
        if grad_src is not None:
            out = grad_src + row * width + feature
            tl.store(out, found.to(grad_src.dtype.element_ty), mask=is_feature)
    else:
        if grad_trg is not None:
            image = row - given_rows
            place = image * locations + tl.load(picks + image)
            out = grad_trg + place * width + feature
            found += tl.load(out, mask=is_feature, other=0.0).to(tl.float32)
            tl.store(out, found.to(grad_trg.dtype.element_ty), mask=is_feature)


@triton.jit
def nce_scale(
    grads,  # [count] gradients for an upstream of 1, in and out
    upstream,  # scalar
    count,  # accesses are wide where it is a multiple of 16
    TILE: tl.constexpr,
):
    """One program: TILE entries times the upstream; it does nothing if that is 1."""
    factor = tl.load(upstream).to(tl.float32)
    if factor != 1.0:
        place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        found = tl.load(grads + place, mask=place < count, other=0.0).to(tl.float32)
        tl.store(grads + place, (found * factor).to(grads.dtype.element_ty), mask=place < count)
