"""What a YOLOS is made of: sizes, input, classes; and the published ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenlabels.errors import ParameterError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_SIDE = 10_000
MAX_PARAMETERS = 5_000_000_000

COCO_LABELS = (
    "N/A person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant N/A stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe N/A backpack umbrella N/A N/A "
    "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle N/A wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed N/A dining_table N/A N/A toilet N/A tv laptop mouse "
    "remote keyboard cell_phone microwave oven toaster sink refrigerator N/A book clock vase scissors teddy_bear "
    "hair_drier toothbrush"
)
"""The category that each COCO id stands for, 0 to 90; spaces within a name as underscores."""


@dataclass(frozen=True, slots=True)
class YolosConfig:
    """A YOLOS ("You Only Look at One Sequence", Fang et al. 2021); the defaults are YOLOS-tiny.

    Attributes:
        dim: width of a token.
        depth: blocks.
        heads: of attention.
        mlp_hidden: width within the MLP of a block.
        patch: side of a patch in pixels.
        image_size: (H, W) whose grid the stored positions are for; they are interpolated to any other.
        detection_tokens: boxes that are predicted.
        labels: names of the classes; the model has one more output, no-object, the last.
        layer_norm_eps: of every norm.
        qkv_bias: whether queries, keys and values have biases.
        mid_positions: whether every block but the last is followed by positions of its own.
        shortest_edge: pixels of the short side of the input.
        longest_edge: most pixels of its long side.
        mean: of each channel of RGB in 0..1, subtracted from pixels.
        std: of each channel, pixels are divided by.
        named: whether `labels` mean something; else a class is the COCO category of its number.

    Raises:
        ParameterError: numbers that make no model, or one beyond all measure.
    """

    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_hidden: int = 768
    patch: int = 16
    image_size: tuple[int, int] = (800, 1333)
    detection_tokens: int = 100
    labels: tuple[str, ...] = tuple(name.replace("_", " ") for name in COCO_LABELS.split())
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    mid_positions: bool = False
    shortest_edge: int = 512
    longest_edge: int = 853
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    named: bool = True

    def __post_init__(self) -> None:
        counts = (self.dim, self.depth, self.heads, self.mlp_hidden, self.patch, self.detection_tokens)
        sides = (*self.image_size, self.shortest_edge, self.longest_edge)
        fine = (
            all(isinstance(value, int) and value >= 1 for value in (*counts, *sides))
            and self.dim % self.heads == 0
            and min(sides) >= self.patch
            and max(sides) <= MAX_SIDE
            and self.longest_edge >= self.shortest_edge
            and self.labels
            and 0 < self.layer_norm_eps < 1
            and len(self.mean) == len(self.std) == 3
            and all(0 < value < 1e6 for value in self.std)
        )
        if not fine or self.parameter_count > MAX_PARAMETERS:
            shown = ", ".join(f"{name} {getattr(self, name)}" for name in (
                "dim", "depth", "heads", "mlp_hidden", "patch", "image_size", "detection_tokens", "layer_norm_eps",
                "shortest_edge", "longest_edge"))  # fmt: skip
            raise ParameterError(f"a YOLOS with {shown} and {len(self.labels)} classes cannot be made.")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the stored positions."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def positions(self) -> int:
        """Stored positions: CLS, patches, detection tokens."""
        return 1 + self.grid[0] * self.grid[1] + self.detection_tokens

    @property
    def classes(self) -> int:
        """Outputs of the class head: the classes, and no-object."""
        return len(self.labels) + 1

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes, without making the model."""
        dim, hidden = self.dim, self.mlp_hidden
        block = 3 * dim * dim + 3 * dim * self.qkv_bias + dim * dim + dim + 2 * dim * hidden + hidden + dim + 4 * dim
        positions = self.positions * dim * (1 + (self.depth - 1) * self.mid_positions)
        heads = 4 * (dim * dim + dim) + (dim + 1) * (self.classes + 4)
        tokens = (1 + self.detection_tokens) * dim
        return block * self.depth + positions + tokens + heads + 2 * dim + (3 * self.patch**2 + 1) * dim


_TINY = YolosConfig()
SIZES: dict[str, YolosConfig] = {
    "tiny": _TINY,
    "small": replace(
        _TINY, dim=384, heads=6, mlp_hidden=1536, image_size=(512, 864), mid_positions=True, shortest_edge=800,
        longest_edge=1333,
    ),
    "base": replace(
        _TINY, dim=768, heads=12, mlp_hidden=3072, image_size=(800, 1344), mid_positions=True, shortest_edge=800,
        longest_edge=1333,
    ),
    "small_dWr": replace(
        _TINY, dim=330, depth=14, heads=6, mlp_hidden=1320, image_size=(512, 864), mid_positions=True,
        shortest_edge=800, longest_edge=1333,
    ),
}  # fmt: skip
"""The published sizes, as their checkpoints and evaluation have them."""
