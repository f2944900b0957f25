"""What a method asks of the data: views of an image, and the ingredients that each view has beyond its pixels.

A method describes its views with these classes; the host's pipeline (`data.pipeline`) and the on-device pipeline
(`data.on_device`) make them. What passes between the two sides is a batch, a dict of arrays. Each key of it belongs to
an ingredient, which states its shape, dtype and meaning in `entries`; `describe` prints the table of all.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

IMAGE = "image"  # the name of the only view of single-view methods; its batch keys carry no prefix


class Entry(NamedTuple):
    """One array of a batch, without the first dimension (the images).

    Attributes:
        shape: for one image.
        dtype: by name.
        meaning: one line for the documentation.

    Example:
        >>> import maskcl_jax as mc
        >>> mc.Entry((16,), "int32", "indices of the visible patches").shape
        (16,)
    """

    shape: tuple[int, ...]
    dtype: str
    meaning: str


class Batch(abc.ABC):
    """A batch under construction; `batches.HostBatch` and `batches.DeviceBatch` are the two kinds.

    Random numbers are drawn by the name of a stream (`mask/query`), so that streams are independent of each other and
    of the order in which they are drawn: a new ingredient changes no other one's numbers.

    Attributes:
        xp: the array library, numpy or jax.numpy.
        views: {name: View}.
        images: {view name: (B, H, W, C) uint8}.
        crops: {view name: (B, 5) int32}, see `crop`.
        arrays: {batch key: (B, ...)}, what ingredients have added so far.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> batch = HostBatch((), seed=0, epoch=0, indices=np.arange(8))  # of eight images, on the host
        >>> isinstance(batch, mc.Batch), batch.uniform("angle/query", (2,)).shape
        (True, (8, 2))
    """

    xp: Any

    def __init__(self, views: "Sequence[View]"):
        self.views = {view.name: view for view in views}
        self.images: dict[str, Any] = {}
        self.crops: dict[str, Any] = {}
        self.arrays: dict[str, Any] = {}

    @abc.abstractmethod
    def uniform(self, stream: str, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> Any:
        """Draws numbers that are uniform in [0, 1).

        Args:
            stream: what they are for ("angle/query"); other streams have other numbers.
            shape: for one image.
            dtype: float32 or float64. A device has no float64: there it is float32 always.

        Returns:
            `(B, *shape)`.
        """

    @abc.abstractmethod
    def integers(self, stream: str, high: int, shape: tuple[int, ...] = ()) -> Any:
        """Draws whole numbers that are uniform in 0..high - 1.

        Args:
            stream: what they are for, see `uniform`.
            high: how many different ones there are.
            shape: for one image.

        Returns:
            `(B, *shape)` int32.
        """

    def add_ingredients(self) -> None:
        """Samples every ingredient of every view, in order; pixels and crops of all views are there already."""
        for view in self.views.values():
            for ingredient in view.ingredients:
                self.arrays |= ingredient.sample(view, self)


class Crop(abc.ABC):
    """Which part of an image a view shows.

    Attributes:
        size: (height, width) of the view in pixels.
        interpolation: "bicubic" or "bilinear", both antialiased.
        master: where given, the crop is resized to this (height, width) and a window of `size` is taken from it.
        shift: the largest distance of that window's corner from the master's, pixels.

    Example:
        >>> import maskcl_jax as mc
        >>> crop = mc.CenterCrop(size=(32, 48))
        >>> isinstance(crop, mc.Crop), crop.entries(mc.View(crop=crop), channels=3)["image"].shape
        (True, (32, 48, 3))
    """

    size: tuple[int, int]
    interpolation: str
    master: tuple[int, int] | None
    shift: int

    @abc.abstractmethod
    def entries(self, view: "View", channels: int) -> dict[str, Entry]:
        """The arrays that this crop adds to a batch.

        Args:
            view: the view that has this crop.
            channels: of the images.

        Returns:
            {batch key: Entry}: the pixels of the view and, of a shifted window, where it lies.
        """

    @abc.abstractmethod
    def sample(self, view: "View", batch: Batch, height: Any, width: Any) -> Any:
        """Draws the crop of every image.

        Args:
            view: the view that has this crop.
            batch: `batch.crops` holds those of earlier views.
            height: of the images, (B,) or one number for all.
            width: likewise.

        Returns:
            (B, 5) int32: top, left, height, width in pixels of the image, and 1 where mirrored left-right.
        """

    def sample_shift(self, view: "View", batch: Batch) -> Any:
        """Draws where the window lies in the master.

        Args:
            view: the view that has this crop.
            batch: the source of random numbers.

        Returns:
            (B, 2) int32, down and across, each uniform in 0..shift.
        """
        return batch.integers(f"shift/{view.name}", self.shift + 1, (2,))


class Ingredient(abc.ABC):
    """Something a view has beyond its pixels: a mask, boxes, a color augmentation.

    A frozen dataclass in a file of its own. The fields are its specification; `entries` declares the batch keys, and
    `sample` draws them, by the same code on the host (numpy) and on the device (jax.numpy).

    Example:
        >>> import dataclasses
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Angle(mc.Ingredient):
        ...     high: float
        ...     def entries(self, view, channels):
        ...         return {view.key("angle"): mc.Entry((), "float32", "degrees")}
        ...     def sample(self, view, batch):
        ...         return {view.key("angle"): self.high * batch.uniform(f"angle/{view.name}")}
        >>> view = mc.View(crop=mc.CenterCrop(size=(32, 32)), ingredients=(Angle(high=90.0),))
        >>> batch = HostBatch((view,), seed=0, epoch=0, indices=np.arange(8))
        >>> batch.add_ingredients()
        >>> batch.arrays["angle"].shape
        (8,)
    """

    @abc.abstractmethod
    def entries(self, view: "View", channels: int) -> dict[str, Entry]:
        """The arrays that this ingredient adds to a batch.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}; empty for an ingredient that changes pixels only.
        """

    @abc.abstractmethod
    def sample(self, view: "View", batch: Batch) -> dict[str, Any]:
        """Draws the arrays that `entries` declares, for every image of a batch.

        Args:
            view: the view that has the ingredient.
            batch: the images and crops of all views so far, and the source of random numbers. Compute with `batch.xp`.

        Returns:
            {batch key: (B, ...) array}. An ingredient may also replace `batch.images[view.name]`.
        """

    def open(self, examples: Any, data_config: Any) -> "Ingredient":
        """The ingredient, ready to sample from the training images.

        Called before anything is built, as a check, and again when the pipeline starts.

        Args:
            examples: the training split of the data source.
            data_config: `config.data`.

        Returns:
            Itself, or a copy that holds what it has opened.

        Raises:
            UserError: the user's files that the ingredient needs are missing or do not fit the images.
        """
        del examples, data_config
        return self

    def host_only(self) -> str:
        """Why only the host can sample this ingredient, and the remedy; "" where the device can too."""
        return ""

    def needs_processes(self) -> bool:
        """Whether worker processes sample it faster on the host than threads.

        So it is where Python code runs for every image, which only one thread of a process can do at a time.
        """
        return False


Kind = TypeVar("Kind", bound=Ingredient)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view of an image: a crop, and ingredients in the order in which they are sampled.

    Attributes:
        name: of the batch key of its pixels, (B, H, W, C) uint8.
        crop: which part of the image it shows.
        ingredients: see `Ingredient`. One that reads pixels sees what earlier ones made of them.

    Example:
        >>> import maskcl_jax as mc
        >>> mask = mc.PatchMask(kind="random", num_patches=16, num_visible=4)
        >>> view = mc.View(name="query", crop=mc.RandomResizedCrop(size=(32, 32)), ingredients=(mask,))
        >>> view.key("visible"), view.find(mc.PatchMask).num_visible, view.find(mc.Color)
        ('query_visible', 4, None)
    """

    name: str = IMAGE
    crop: Crop
    ingredients: tuple[Ingredient, ...] = ()

    def key(self, suffix: str) -> str:
        """The batch key of something that belongs to this view.

        Args:
            suffix: what it is, "visible".

        Returns:
            "query_visible" of a view "query"; the suffix alone of the only view of an image.
        """
        return suffix if self.name == IMAGE else f"{self.name}_{suffix}"

    def find(self, kind: type[Kind]) -> Kind | None:
        """Looks for an ingredient.

        Args:
            kind: the class of the ingredient.

        Returns:
            The view's first ingredient of this class; None where it has none.
        """
        return next((ingredient for ingredient in self.ingredients if isinstance(ingredient, kind)), None)


def open_views(views: Sequence[View], examples: Any, data_config: Any) -> tuple[View, ...]:
    """The views with every ingredient opened for the training images `examples` (see `Ingredient.open`)."""
    return tuple(
        dataclasses.replace(view, ingredients=tuple(i.open(examples, data_config) for i in view.ingredients))
        for view in views
    )


def batch_entries(views: Iterable[View], channels: int) -> dict[str, Entry]:
    """Every array of a batch of these views, by its key.

    Args:
        views: of a method.
        channels: of the images.

    Returns:
        {batch key: Entry}, for one image.
    """
    entries: dict[str, Entry] = {}
    for view in views:
        parts: list[Crop | Ingredient] = [view.crop, *view.ingredients]
        for part in parts:
            for key, entry in part.entries(view, channels).items():
                if key in entries:
                    raise ValueError(f"two ingredients add the batch key {key!r}: give one of them another name")
                entries[key] = entry
    entries["label"] = Entry((), "int32", "class, -1 where the data has none; no loss reads it")
    entries["index"] = Entry((), "int64", "which example of the split it is")
    return entries


def batch_shapes(views: Iterable[View], batch_size: int, channels: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """{batch key: (shape, name of the dtype)} of a batch, without making one."""
    return {k: ((batch_size, *entry.shape), entry.dtype) for k, entry in batch_entries(views, channels).items()}


def describe(views: Iterable[View], channels: int) -> str:
    """The batch as a markdown table: key, shape, meaning."""
    rows = [
        f"| `{key}` | ({', '.join(['B', *map(str, entry.shape)])}) {entry.dtype} | {entry.meaning} |"
        for key, entry in batch_entries(views, channels).items()
    ]
    return "\n".join(["| key | shape, dtype | meaning |", "|---|---|---|", *rows])
