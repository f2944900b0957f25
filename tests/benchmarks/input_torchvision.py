"""Images a second and core: our input pipeline beside torchvision's transforms with Pillow, the same files, one run.

    python tests/benchmarks/input_torchvision.py [--images=256] [--rounds=3] [--decay=0.88 | --photographs]

The files are 500 x 375 pixels at quality 92: noise of all scales, 105 kB each (76 with --decay=0.8), or the eighteen
photographs that two of our dependencies carry, 54 kB. Theirs twice: the transforms alone, and as they are used, in
batches by PyTorch's DataLoader; ours makes batches, with their masks. All by CPU time and in one thread, so that
other load counts little and a loader's workers do not add to theirs. In turn, and the median of the rounds: of the
rates, and of the ratios, whose sides were measured next to one another.
"""

import argparse
import os
import pathlib
import random
import runpy
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("XLA_FLAGS", "")  # the tests' flags are for compiling fast, not for running fast
import conftest  # noqa: E402, F401  (torchvision beside any build of torch)
import torch  # noqa: E402
from PIL import Image, ImageFilter, ImageOps  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from maskcl_jax.benchmark import jpegs  # noqa: E402
from maskcl_jax.data import pipeline  # noqa: E402
from maskcl_jax.data.sources import embedded, open_source  # noqa: E402
from maskcl_jax.methods import create  # noqa: E402

BATCH = 64
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
END = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
# facebookresearch/mae main_pretrain.py and moco main_moco.py --aug-plus.
MAE = transforms.Compose(
    [transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC), *END]
)
MOCO = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([lambda x: x.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))], p=0.5),
        *END,
    ]
)


def two_views(image) -> list:
    """Of MoCo: each by its own draw."""
    return [MOCO(image), MOCO(image)]


def transforms_alone(folder: str, change) -> float:
    """Images per CPU second: each file opened and transformed, the result discarded."""
    files = sorted(pathlib.Path(folder).rglob("*.jpg"))
    begin = time.process_time()
    for file in files:
        with Image.open(file) as image:
            change(image.convert("RGB"))
    return len(files) / (time.process_time() - begin)


def loader(folder: str, change) -> float:
    """Images per CPU second, in batches, in this process: workers would have to send theirs too."""
    images = datasets.ImageFolder(folder, change)
    batches = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True)
    next(iter(batches))
    begin = time.process_time()
    for _ in batches:
        pass
    return len(images) / (time.process_time() - begin)


def ours(config: str, place: str, folder: str, steps: int) -> float:
    """Images per CPU second, in batches; place: where colors are augmented."""
    name, _, preset = config.partition(":")
    c = runpy.run_path(str(ROOT / "configs" / name))["get_config"](f"{preset},path={folder}")
    c.augment.photometric = place
    c.data.threads = 1  # as theirs: two threads on the halves of one core would each count as slower
    source, views = open_source(c.data), create(c).views
    with pipeline.train_batches(source, views, data_config=c.data, batch_size=BATCH, seed=0) as batches:
        for _ in range(4):
            next(batches)
        begin = time.process_time()
        for _ in range(steps):
            next(batches)
        return steps * BATCH / (time.process_time() - begin)


def write_photographs(folder: str, count: int) -> None:
    """Photographs of all kinds, made as large as `jpegs` has them."""
    size, files = (jpegs.WIDTH, jpegs.HEIGHT), embedded.photographs()
    place = pathlib.Path(folder, "photographs")
    place.mkdir()
    for i in range(count):
        with Image.open(files[i % len(files)]) as image:
            crop = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)
        crop.save(place / f"{i:06d}.jpg", quality=jpegs.QUALITY)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decay", type=float, default=jpegs.DECAY)
    parser.add_argument("--photographs", action="store_true")
    arguments = parser.parse_args()
    if arguments.images < 2 * BATCH:  # some are held out for evaluation
        parser.error(f"--images={arguments.images} are too few for a batch of {BATCH}: give {2 * BATCH} or more")
    torch.set_num_threads(1)  # threads that wait for one another would count as work
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photographs:
            write_photographs(folder, arguments.images)
        else:
            jpegs.write(folder, arguments.images, arguments.decay)
        files = list(pathlib.Path(folder).rglob("*.jpg"))
        weight = sum(file.stat().st_size for file in files) / len(files) / 1e3
        print(f"{len(files)} files of {weight:.0f} kB. Images/s a core: ours, transforms alone, loader", flush=True)
        for what, config, place, change in (
            ("one view of MAE", "mae.py:folder", "device", MAE),
            ("two views of MoCo v2, color on the device", "moco_v2.py:folder", "device", two_views),
            ("two views of MoCo v2, color on the host", "moco_v2.py:folder", "host", two_views),
        ):
            steps = 3 * len(files) // BATCH  # ours thrice, which takes about as long as theirs once
            rounds = [
                (ours(config, place, folder, steps), transforms_alone(folder, change), loader(folder, change))
                for _ in range(arguments.rounds)
            ]
            mine, alone, loaded = (statistics.median(column) for column in zip(*rounds, strict=True))
            to_alone = statistics.median(a / b for a, b, _ in rounds)
            to_loaded = statistics.median(a / c for a, _, c in rounds)
            speeds = f"{mine:.0f}, {alone:.0f}, {loaded:.0f}"
            print(f"{what}: {speeds}: {to_alone:.2f} and {to_loaded:.2f} times", flush=True)


if __name__ == "__main__":
    main()
