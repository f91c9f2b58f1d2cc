"""What an installed wheel must do without the repository: ``python smoke.py FOLDER``.

FOLDER is where the wheel is installed. Run from an empty folder.
"""

import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import torch

import amdim_fast
from amdim_fast import LossMultiNCE, TwoViews
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.views import compiled
from amdim_fast.views.params import POLICIES

folder = Path(sys.argv[1]).resolve()
package = Path(amdim_fast.__file__).parent
assert package.is_relative_to(folder), f"amdim_fast is {package}; it must be in {folder}"
assert "triton" not in sys.modules
assert metadata.version("amdim-fast") == amdim_fast.__version__
kernel = util.find_spec("amdim_fast.kernels.nce_forward")
assert kernel is not None, "amdim_fast.kernels is not in the wheel"
assert Path(kernel.origin).is_relative_to(folder)
libraries = {path.name for path in package.rglob("*.so")}
assert libraries <= {"_cpu.so", "_cuda.so"}, f"the wheel has {sorted(libraries)}"
assert compiled.load_cpu(), "the compiled library is not in the wheel"
assert all(Path(name).is_relative_to(folder) for name in torch.ops.loaded_libraries)

maps = [torch.randn(8, 16, side, side, requires_grad=True) for side in 2 * (1, 5, 7)]
locations = tuple(torch.randint(0, 25, (8,)) for _ in range(2))
losses = LossMultiNCE(tclip=10.0)(*maps, locations=locations)
expected = multiscale_nce(tuple(maps[:3]), tuple(maps[3:]), locations, clip=10.0)
torch.testing.assert_close(torch.stack(losses), torch.stack(expected))
torch.testing.assert_close(
    torch.autograd.grad(sum(losses), maps), torch.autograd.grad(sum(expected), maps)
)

images = torch.randint(0, 256, (3, 40, 48, 3), dtype=torch.uint8)
views = [
    TwoViews(POLICIES["stl10"], backend=backend)(images, generator=torch.Generator().manual_seed(0))
    for backend in ("compiled", "reference")
]
assert views[0].shape == (2, 3, 3, 64, 64)
assert torch.equal(*views)

scripts = (folder / "bin" / "amdim-fast", Path(sys.executable).parent / "amdim-fast")
script = next(path for path in scripts if path.exists())
for arguments in (["info"], ["--help"], ["bench", "--help"]):
    for command in ([sys.executable, "-m", "amdim_fast"], [sys.executable, str(script)]):
        subprocess.run([*command, *arguments], check=True, capture_output=True)
print(f"amdim_fast {amdim_fast.__version__} of {package} works")
