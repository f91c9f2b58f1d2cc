"""Files of the public code's versions: features of each against that version's equations."""

import re
from dataclasses import dataclass

import pytest
import torch

from amdim_fast import AMDIM, CheckpointError, load_checkpoint
from tests.checkpoints.cases import rename, written
from tests.checkpoints.plain_encoder import PlainEncoder


@dataclass
class Version:
    """What a version of the public code built and wrote; ``use_bn`` is its argument."""

    probes_on_maps: bool = False
    biases: bool = True
    unused: bool = False
    first: bool = False

    def switches(self, size, use_bn):
        return {
            "blocks": use_bn and not (self.first and size == 128),
            "heads": use_bn and not self.first,
            "last": use_bn or not self.first,
        }

    def state(self, size, use_bn):
        """A state dict with random weights and statistics, counters where a BatchNorm is on."""
        generator = torch.Generator().manual_seed(size + use_bn)
        model = AMDIM(size, 2, 20, 2, n_classes=3)
        state = {}
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value = torch.tensor(0)
            else:
                value = torch.rand(value.shape, generator=generator) - 0.4
                value = value.abs() + 0.2 if "running_var" in name else value
            name = re.sub(r"(rkhs_block_.)\.bn_hid", r"\1.bn1", name)
            state[name.replace("encoder.", "encoder.module.")] = value
        on = self.switches(size, use_bn)
        last = max(int(n) for name in state for n in re.findall(r"module\.layer_list\.(\d+)", name))
        running = {
            "blocks": r"(layer_list\.\d+\.layer_list\.\d+|module\.layer_list\.\d+)\.bn1\.",
            "heads": r"rkhs_block_.\.bn1\.",
            "last": rf"module\.layer_list\.{last}\.bn\.",
        }
        for name in state:
            if not name.endswith("tracked"):
                continue
            ran = [switch for switch, pattern in running.items() if re.search(pattern, name)]
            if "bn_out" in name or "block_glb" in name or any(on[switch] for switch in ran):
                state[name] += 7
        for index in (0, 1) if size == 128 else (0,):
            layer = f"encoder.module.layer_list.{index}"
            if self.unused:
                norm = torch.nn.BatchNorm2d(2).state_dict()
                state |= {f"{layer}.bn.bn.{name}": value for name, value in norm.items()}
            if not self.biases:
                del state[f"{layer}.conv.bias"]
        if self.probes_on_maps:
            probes = {name: value for name, value in state.items() if "block_glb" in name}
            state |= rename(probes, ("block_glb", "block_bop"))
        return state | {"g2l_loss.masks_r5": torch.zeros(25, 1, 5, 5, dtype=torch.uint8)}


VERSIONS = {
    "2019-06-14, second": Version(probes_on_maps=True),
    "2019-07-10": Version(unused=True, biases=False),
    "2019-07-12": Version(unused=True),
}
FIRST = Version(probes_on_maps=True, first=True)


def check(version, size, use_bn, folder, wrapped=True):
    state = version.state(size, use_bn)
    contents = {"info_epochs": 1, "info_steps": 9, "model": state}
    model = load_checkpoint(written(folder, contents if wrapped else state)).eval()
    encoder = {
        name.removeprefix("encoder.module."): value.double()
        for name, value in state.items()
        if name.startswith("encoder")
    }
    plain = PlainEncoder(encoder, size, **version.switches(size, use_bn))
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(model.double().encoder(x), plain(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    return model, state


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_features_are_those_of_the_version(version, use_bn, size, tmp_path):
    model, state = check(VERSIONS[version], size, use_bn, tmp_path)
    assert model.encoder.use_bn is use_bn
    assert model.g2l_loss.reg_weight == (5e-2 if version == "2019-07-12" else 4e-2)
    names = [name for name in state if name.startswith("evaluator.block_glb")]
    ours = model.state_dict()
    assert names
    assert all(torch.equal(ours[name], state[name].to(ours[name].dtype)) for name in names)
    assert not any("block_bop" in name for name in ours)


def test_first_versions_at_128_px_had_no_batchnorm_in_blocks(tmp_path):
    model, _ = check(FIRST, 128, True, tmp_path, wrapped=False)
    assert not model.encoder.use_bn


@pytest.mark.parametrize("probes", [True, False])
@pytest.mark.parametrize(
    ("size", "use_bn", "message"),
    [
        (32, False, r"last layer was off \(use_bn=False\): r1 would be wrong"),
        (128, False, r"last layer was off \(use_bn=False\): r1 would be wrong"),
        (32, True, r"heads had no BatchNorm inside \(use_bn=True\): r5 and r7 would be wrong"),
    ],
)
def test_first_versions_that_no_encoder_here_equals_are_refused(
    size, use_bn, message, probes, tmp_path
):
    state = FIRST.state(size, use_bn)
    state = state if probes else rename(state, ("block_bop", None))
    named = rf"file\.pth is of the public code's first versions, of 14 June 2019, where .*{message}"
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(written(tmp_path, {"model": state}))


def test_nothing_else_is_dropped_or_filled_in(tmp_path):
    old, bare = (VERSIONS[name].state(32, False) for name in ("2019-06-14, second", "2019-07-10"))
    cases = [
        ({**old, "evaluator.block_bop_odd.block_forward.2.weight": torch.zeros(1)}, "unexpected"),
        ({**old, "evaluator.block_bop_lin.weight": torch.zeros(1)}, "unexpected"),
        (rename(old, (r"list\.0\.conv\.bias", None)), r"missing: encoder\.layer_list\.0\.conv\.b"),
        (rename(bare, (r"rkhs_block_5\.shortcut\.bias", None)), r"missing: \S+shortcut\.bias"),
        ({**old, "encoder.rkhs_block_5.bn_hid.bn.bias": torch.zeros(20)}, r"unexpected: .*\.bn1\."),
    ]
    for state, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(written(tmp_path, {"model": state}))


def test_our_own_untrained_model_is_not_taken_for_an_old_one(tmp_path):
    state = AMDIM(32, 2, 6, 1, use_bn=True).state_dict()
    assert not load_checkpoint(written(tmp_path, state)).encoder.use_bn
