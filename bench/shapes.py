"""The rows that are measured, their classes, and what each row costs in FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("lstm", "gru", "rnn")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class Read:
    """Weights of `footprint` bytes in memory, of which `total` bytes are read in one pass."""

    footprint: int
    total: int


@dataclass(frozen=True)
class RecurrentRow:
    """One recurrent module and its input: x `[seq_len, batch, input_size]`."""

    kind: str
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int
    bidirectional: bool
    group: str

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.seq_len, self.batch, self.input_size, self.hidden_size, self.layers)

    @property
    def label(self) -> str:
        """`lstm (T,B,I,H,layers)`, with ` bi` for bidirectional."""
        sizes = ",".join(map(str, self.shape))
        return f"{self.kind} ({sizes}{' bi' if self.bidirectional else ''})"

    def layer_input(self, layer: int) -> int:
        """Features entering a layer: the row's own, or all directions of the layer below."""
        return self.input_size if layer == 0 else self.hidden_size * self.directions

    def _weight_counts(self) -> list[tuple[int, int]]:
        """Elements of (weight_ih, weight_hh) for every layer and direction."""
        rows = GATES[self.kind] * self.hidden_size
        return [
            (rows * self.layer_input(layer), rows * self.hidden_size)
            for layer in range(self.layers)
            for _ in range(self.directions)
        ]

    def flops(self, train: bool = False) -> int:
        """Products only: two FLOPs per weight, step and batch row; backward counts twice more."""
        weights = sum(ih + hh for ih, hh in self._weight_counts())
        return 2 * weights * self.seq_len * self.batch * (3 if train else 1)

    def reads(self, itemsize: int) -> list[Read]:
        """The weights a forward pass cannot avoid reading.

        Every step reads weight_hh of its layer, so that array is the footprint; weight_ih is
        read once for the whole sequence. With one step everything is read once, and between
        calls all weights of the module compete for the caches.
        """
        counts = self._weight_counts()
        everything = sum(ih + hh for ih, hh in counts) * itemsize
        if self.seq_len == 1:
            return [Read(everything, everything)]
        inputs = sum(ih for ih, _ in counts) * itemsize
        steps = [Read(hh * itemsize, hh * itemsize * self.seq_len) for _, hh in counts]
        return [Read(everything, inputs), *steps]


_SHAPES = (
    (1, 1, 512, 512, 1, False, "streaming"),
    (25, 1, 65, 100, 1, False, "small"),
    (50, 1, 128, 128, 1, False, "small"),
    (100, 1, 512, 512, 1, False, "streaming"),
    (100, 1, 1024, 1024, 2, False, "streaming"),
    (100, 32, 512, 512, 1, False, "batched"),
    (50, 64, 1024, 1024, 1, False, "batched"),
    (200, 16, 256, 256, 2, True, "batched"),
)

RECURRENT_ROWS = tuple(RecurrentRow(kind, *shape) for kind in KINDS for shape in _SHAPES)

_QUICK_SHAPES = (
    (25, 1, 65, 100, 1, False, "small"),
    (30, 1, 512, 512, 1, False, "streaming"),
    (20, 32, 256, 256, 1, False, "batched"),
)

QUICK_ROWS = tuple(RecurrentRow(kind, *shape) for kind in KINDS for shape in _QUICK_SHAPES)


@dataclass(frozen=True)
class LinearRow:
    """y `[m, n]` = x `[m, k]` Wᵀ + b."""

    m: int
    k: int
    n: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.m, self.k, self.n)

    @property
    def label(self) -> str:
        return f"linear ({self.m},{self.k},{self.n})"

    def flops(self, train: bool = False) -> int:
        return 2 * self.m * self.k * self.n * (3 if train else 1)

    def reads(self, itemsize: int) -> tuple[Read, ...]:
        """The weight, where so few rows use it that reading it is what takes the time."""
        size = self.k * self.n * itemsize
        return (Read(size, size),) if self.m < 4 else ()


DECODE_ROWS = (
    LinearRow(1, 768, 3072),
    LinearRow(2, 768, 3072),
    LinearRow(3, 768, 3072),
    LinearRow(1, 3072, 768),
    LinearRow(1, 3072, 3072),
    LinearRow(1, 768, 50257),
)

LINEAR_ROWS = (
    LinearRow(128, 768, 3072),
    LinearRow(197, 768, 768),
    LinearRow(512, 512, 2048),
    LinearRow(1024, 1024, 1024),
)


@dataclass(frozen=True)
class NormRow:
    """An operation on each row of x `[rows, columns]`, in these modes of the benchmark.

    residual: layer norm of a sum of two arrays; embedding: rows of a table of as many, in another order.
    """

    op: str
    rows: int
    columns: int
    modes: tuple[str, ...] = ("fp32",)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.columns)

    @property
    def label(self) -> str:
        return f"{self.op} ({self.rows},{self.columns})"

    def read(self, train: bool = False) -> Read:
        """x read and y written, with a residual that and the sum too; backward reads x and dy and writes dx."""
        size = 4 * self.rows * self.columns * (2 if self.op == "residual" else 1)
        return Read(4 * size, 5 * size) if train else Read(2 * size, 2 * size)


NORM_ROWS = (
    NormRow("layer_norm", 4096, 768, ("fp32", "train")),
    NormRow("softmax", 4096, 1024),
    # Past the caches of most machines.
    NormRow("layer_norm", 32768, 768, ("fp32", "train")),
    NormRow("gelu", 4096, 3072),
    NormRow("gelu", 16384, 3072),
    NormRow("softmax", 32768, 1024),
    NormRow("residual", 32768, 768),
    NormRow("embedding", 32768, 768),
)
