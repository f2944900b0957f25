"""One training step on the CPU beside PyTorch's (eager, as many threads): the same maths and shapes, in turn, one run.

    python tests/benchmarks/step_torch.py [--only=MAE] [--batch=32] [--rounds=2] [--threads=2] [--accumulation=1]

MAE, ccMIM and CMAE with a ViT-S/16 and MAE's decoder at 224 pixels, AdamW; small: MAE of a ViT of four blocks of width
96 at 32 pixels; MoCo v2 with a ResNet-18 at 128 pixels,
one process, SGD. Forward, backward, optimiser and EMA; views are given. Ours is compiled once; then they take turns,
each in its process, two steps a turn, of which the second counts: the first finds caches and memory given away.
The first turn of both does not count. Times are the least of the rounds, the ratio is ours over theirs.

--accumulation: micro-batches of ours, for MAE only, whose gradient they do not change.
"""

import argparse
import multiprocessing
import os
import pathlib
import runpy
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ.setdefault("XLA_FLAGS", "")  # the tests' flags are for compiling fast, not for running fast
import conftest  # noqa: E402, F401  (torchvision beside any build of torch)
import jax  # noqa: E402
import torch  # noqa: E402
import torch_models  # noqa: E402

from maskcl_jax.benchmark import modes  # noqa: E402


def masked(file: str, net, views: int):
    """(our config, their step) of a masked method: `views` of 224 pixels a step."""

    def pair(batch: int):
        model, images = net(), torch.randn(views, batch, 3, 224, 224)
        trained = [p for p in model.parameters() if p.requires_grad]
        tx = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
        config = config_of(file, f"imagenet,variant=S/16,batch_size={batch},dtype=float32")
        if views == 2:
            without_color(config.method.target_augment)
        return config, stepper(tx, lambda: model(*images), getattr(model, "move", None))

    return pair


def small(batch: int):
    """(our config, their step) of MAE at 32 pixels, as a laptop trains it: the preset `synthetic`."""
    decoder = {"depth": 1, "width": 64, "heads": 4}
    net = torch_models.MAE(shown=16, decoder=decoder, width=96, depth=4, heads=3, patch=4, size=32)
    images = torch.randn(batch, 3, 32, 32)
    tx = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)
    return config_of("mae.py", f"synthetic,batch_size={batch}"), stepper(tx, lambda: net(images))


def moco(batch: int):
    """(our config, their step)."""
    net, views = torch_models.MoCo(queue=64 * batch), torch.randn(2, batch, 3, 128, 128)
    tx = torch.optim.SGD(net.query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    c = config_of("moco_v2.py", f"imagenet,variant=R18,batch_size={batch},dtype=float32,image_size=128")
    c.method.queue_size, c.method.bn_group_size = 64 * batch, 0
    without_color(c.method.query_augment)
    without_color(c.method.key_augment)
    return c, stepper(tx, lambda: net(*views))


PAIRS = {
    "MAE": masked("mae.py", torch_models.MAE, 1),
    "ccMIM": masked("ccmim.py", torch_models.CCMIM, 1),
    "CMAE": masked("cmae.py", torch_models.CMAE, 2),
    "MoCo": moco,
    "small": small,
}


def without_color(augment) -> None:
    """Turns color augmentation off: the views are given."""
    augment.update({"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0, "solarize_p": 0.0})


def config_of(file: str, argument: str):
    """One of our configs."""
    return runpy.run_path(str(ROOT / "configs" / file))["get_config"](argument)


def stepper(tx, loss, after=None):
    """One step of PyTorch."""

    def step():
        tx.zero_grad(set_to_none=True)
        loss().backward()
        tx.step()
        if after is not None:
            after()

    return step


def compiled(config):
    """One step of ours."""
    program = modes.program_of(config, per_epoch=1000)
    run = program.compile()
    state, batch = program.new_state(), program.put(modes.synthetic_batch(config, program.method))

    def step():
        nonlocal state
        state, _ = jax.block_until_ready(run(state, batch))

    return step


def seconds(step) -> float:
    """How long the second of two steps takes."""
    step()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def serve(pipe, name: str, batch: int, threads: int) -> None:
    """PyTorch's process: a time for every word that comes."""
    torch.set_num_threads(threads)
    _, step = PAIRS[name](batch)
    while pipe.recv():
        pipe.send(seconds(step))


def main() -> None:
    """Prints a line a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PAIRS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.accumulation > 1 and arguments.only != "MAE":
        parser.error("--accumulation changes what the other methods contrast: give --only=MAE with it")
    its = arguments.batch, arguments.threads
    spawn = multiprocessing.get_context("spawn")
    for name in [arguments.only] if arguments.only else PAIRS:
        config = PAIRS[name](arguments.batch)[0]
        config.accumulation = arguments.accumulation
        ours = compiled(config)
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, name, *its))
        process.start()
        times = []
        for i in range(1 + arguments.rounds):
            pair = [seconds(ours)]
            pipe.send(True)
            pair.append(pipe.recv())
            print(f"  {name}: {pair[0]:.3f} s, PyTorch {pair[1]:.3f} s{'' if i else ', not counted'}", flush=True)
            times += [pair] if i else []
        pipe.send(False)
        process.join()
        mine, other = (min(column) for column in zip(*times, strict=True))
        print(f"{name}, batch {arguments.batch}: {mine:.3f} s, PyTorch {other:.3f} s: {mine / other:.2f}", flush=True)


if __name__ == "__main__":
    main()
