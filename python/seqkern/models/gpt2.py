"""GPT-2 (Radford et al. 2019): a causal language model of pre-norm layers with gelu's tanh form.

    x = wte[ids] + wpe[positions];  x = layers(x);  logits = LN(x) wteᵀ

GPT-1 (Radford et al. 2018) has post-norm layers instead, and no LN after the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from .. import _random, ops
from ..nn import Dropout, Embedding, Int8Linear, LayerNorm, ModuleList, quantize_int8_
from ..nn._arrays import Array, array_module, to_numpy
from ..nn._attend import KVCache
from ..nn._init import check_choice
from ..nn._residual import chain_vjp
from ..nn.module import Pullback
from ._files import Blank, blank
from ._pretrained import PretrainedModel, known_fields, refuse
from ._sampling import check_sampling, evaluating, repetition_penalised, sample
from ._transformer import Layer, ModelOutput, as_output_gradient, check_ids, key_mask, plus, run_layers

_LAYER = {
    "layers.#.norm1": "h.#.ln_1", "layers.#.qkv": "h.#.attn.c_attn", "layers.#.out": "h.#.attn.c_proj",
    "layers.#.norm2": "h.#.ln_2", "layers.#.fc1": "h.#.mlp.c_fc", "layers.#.fc2": "h.#.mlp.c_proj",
}  # fmt: skip
NAMES = _LAYER | {"wte": "wte", "wpe": "wpe", "norm": "ln_f"}
GPT1_NAMES = _LAYER | {"wte": "tokens_embed", "wpe": "positions_embed"}
GPT1_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
# n_embd, n_layer, n_head; of GPT-3 as Brown et al. 2020 print them in table 2.1, but for two slips: 24 heads for "xl"
# and a width of 5140 for "13b", against heads of 128 features.
SIZES = {
    "gpt1": (768, 12, 12),
    "gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25),
    "gpt3-small": (768, 12, 12), "gpt3-medium": (1024, 24, 16), "gpt3-large": (1536, 24, 16),
    "gpt3-xl": (2048, 24, 16), "gpt3-2.7b": (2560, 32, 32), "gpt3-6.7b": (4096, 32, 32), "gpt3-13b": (5120, 40, 40),
    "gpt3-175b": (12288, 96, 96),
}  # fmt: skip


@dataclass
class GPT2Config:
    """Sizes of a GPT-2, under Hugging Face's names; n_inner None: 4 n_embd.

    norm_first False: GPT-1's layers and names. `GPT2Config.named("gpt2-xl")`: a published size of `SIZES`.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    eos_token_id: int | None = 50256
    norm_first: bool = True

    @classmethod
    def named(cls, name: str, **changes: Any) -> GPT2Config:
        """gpt1, gpt2 ... gpt2-xl, gpt3-small ... gpt3-175b.

        Of GPT-3 this is the shape: every layer attends to all before, where every second one of theirs is banded.
        """
        check_choice(name, "name", tuple(SIZES))
        sizes: dict[str, Any] = dict(zip(("n_embd", "n_layer", "n_head"), SIZES[name], strict=True))
        if name == "gpt1":
            sizes |= {"vocab_size": 40478, "n_positions": 512, "norm_first": False, "eos_token_id": None}
        if name.startswith("gpt3"):
            sizes["n_positions"] = 2048
        return cls(**{**sizes, **changes})

    @property
    def inner(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def count_parameters(self) -> int:
        e, inner = self.n_embd, self.inner
        layer = (4 * e + 2 * inner) * e + 3 * e + e + inner + e + 4 * e
        return (self.vocab_size + self.n_positions) * e + self.n_layer * layer + 2 * e * self.norm_first

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> GPT2Config:
        if values.get("model_type") == "openai-gpt":
            act = values.get("afn", "gelu")
            given = {"activation_function": GPT1_ACTIVATIONS.get(act, act), "n_inner": None}
            return cls.named("gpt1", **known_fields(cls, values) | given | {"norm_first": False})
        refuse(values, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                        "add_cross_attention": False, "tie_word_embeddings": True})  # fmt: skip
        return cls(**known_fields(cls, values))

    def to_hf(self) -> dict[str, Any]:
        values = asdict(self)
        if values.pop("norm_first"):
            return {**values, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        act = values.pop("activation_function")
        afn = next((theirs for theirs, ours in GPT1_ACTIVATIONS.items() if ours == act), None)
        if afn is None or self.inner != 4 * self.n_embd:
            raise ValueError("a GPT-1's file knows no activation_function but gelu_new, relu and silu, and no n_inner")
        return {**values, "afn": afn, "model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]}


class GPT2(PretrainedModel):
    """`model(ids [B, S])` -> ModelOutput(logits [B, S, vocab], last_hidden_state, ...).

    The head is tied to `wte`. Matrices of the layers are [out, in] here, and [in, out] in `state_dict`
    and in files, as in Hugging Face's. The pullback takes dlogits, or a ModelOutput of gradients
    (logits, last_hidden_state, hidden_states), and returns (None,): ids have no gradient.
    """

    Config = GPT2Config
    model_types: ClassVar[tuple[str, ...]] = ("gpt2", "openai-gpt")
    prefix = "transformer."
    ignored: ClassVar[str] = r"\.attn\.(masked_)?bias$"

    def __init__(self, config: GPT2Config, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        self.tied = {"lm_head.weight": f"{self._names()['wte']}.weight"}
        self.wte = Embedding(c.vocab_size, c.n_embd, dtype=dtype, rng=blank())
        self.wpe = Embedding(c.n_positions, c.n_embd, dtype=dtype, rng=blank())
        self.dropout = Dropout(c.embd_pdrop)
        self.layers = ModuleList(
            Layer(c.n_embd, c.n_head, c.inner, activation=c.activation_function, eps=c.layer_norm_epsilon,
                  norm_first=c.norm_first, fused=True, causal=True, dropout=c.resid_pdrop,
                  attention_dropout=c.attn_pdrop, dtype=dtype, rng=blank())
            for _ in range(c.n_layer)
        )  # fmt: skip
        self.norm = LayerNorm(c.n_embd, c.layer_norm_epsilon, dtype=dtype) if c.norm_first else None
        self.int8_head: Int8Linear | None = None
        self.initialise(c.initializer_range, _random.default_rng() if rng is None else rng)

    def initialise(self, std: float, rng: np.random.Generator) -> None:
        super().initialise(std, rng)
        if not self.config.norm_first or isinstance(rng, Blank):
            return
        for layer in self.layers:  # the residual stream grows with depth: section 2.3
            for linear in (layer.out, layer.fc2):  # type: ignore[attr-defined]
                linear.weight.data *= (2 * self.config.n_layer) ** -0.5

    def _names(self) -> dict[str, str]:
        names = NAMES if self.config.norm_first else GPT1_NAMES
        return {ours: self.prefix + theirs for ours, theirs in names.items()} | {"int8_head": "lm_head"}

    def _transposed(self, name: str) -> bool:
        return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))

    # --- calls ------------------------------------------------------------------------------

    def __call__(
        self, ids: Array, attention_mask: Array | None = None, *, position_ids: Array | None = None,
        cache: list[KVCache] | None = None, output_hidden_states: bool = False, output_attentions: bool = False,
    ) -> ModelOutput:  # fmt: skip
        """attention_mask `[B, past + S]`, 1 = keep. cache: of `new_cache()`; it grows by ids.

        position_ids `[B, S]`: by default past, past + 1, ... as in Hugging Face's call, padded or not.
        """
        output, _ = self._body(ids, attention_mask, position_ids, cache, output_hidden_states, output_attentions)
        output.logits = self._logits(output.last_hidden_state)
        return output

    def vjp(
        self, ids: Array, attention_mask: Array | None = None, *, position_ids: Array | None = None,
        output_hidden_states: bool = False, output_attentions: bool = False,
    ) -> tuple[ModelOutput, Pullback]:  # fmt: skip
        if self.int8_head is not None:
            raise TypeError("vjp: int8 weights have no gradient: train the model before quantising it")
        flags = (output_hidden_states, output_attentions)
        output, pull_body = self._body(ids, attention_mask, position_ids, None, *flags, gradients=True)
        output.logits, saved = ops.linear_forward(output.last_hidden_state, self.wte.weight.data)

        def pull(grad: Any) -> tuple[None]:
            given = as_output_gradient(grad, "logits")
            dy = given.last_hidden_state
            if given.logits is not None:
                grads = ops.linear_backward(given.logits, saved)
                self.wte.weight.add_grad(grads.dweight)
                dy = plus(dy, grads.dx)
            pull_body(dy, given.hidden_states)
            return (None,)

        return output, Pullback(pull)

    def _logits(self, hidden: Array) -> Array:
        return ops.linear(hidden, self.wte.weight.data) if self.int8_head is None else self.int8_head(hidden)

    def _body(
        self, ids: Array, attention_mask: Array | None, position_ids: Array | None, cache: list[KVCache] | None,
        states: bool, weights: bool, *, gradients: bool = False,
    ) -> tuple[ModelOutput, Any]:  # fmt: skip
        past = cache[0].length if cache else 0
        check_ids(ids, self.config.vocab_size, self.config.n_positions, past)
        mask = key_mask(attention_mask, (ids.shape[0], past + ids.shape[1]))
        if position_ids is None:
            position_ids = array_module(ids).arange(past, past + ids.shape[1])[None]
        elif tuple(position_ids.shape) != tuple(ids.shape):
            raise ValueError(f"position_ids must be {list(ids.shape)}, got {list(position_ids.shape)}")
        tokens, pull_tokens = self.wte.vjp(ids)
        places, pull_places = self.wpe.vjp(position_ids)
        x, pull_dropout = self.dropout.vjp(tokens + places)
        x, entered, probs, pull_layers = run_layers(
            self.layers, x, mask, caches=cache, states=states, weights=weights, gradients=gradients
        )
        y, pull_norm = chain_vjp(x, *([] if self.norm is None else [self.norm]))

        def pull(dy: Array | None, dstates: Any) -> None:
            dstates = [None] * (len(self.layers) + 1) if dstates is None else list(dstates)
            (dx,) = pull_norm(plus(dy, dstates[-1]))
            (dx,) = pull_dropout(pull_layers(dx, dstates))
            pull_tokens(dx)
            pull_places(dx if places.shape[0] == dx.shape[0] else dx.sum(0, keepdims=True))

        output = ModelOutput(last_hidden_state=y, cache=cache)
        output.hidden_states = (*entered, y) if states else None
        output.attentions = tuple(probs) if weights else None
        return output, pull

    def quantize_int8(self) -> GPT2:
        """int8 weights in all layers and in the head, for generation: a step reads a quarter of float32's bytes.

        The model cannot be trained or saved from then on. Returns self.
        """
        quantize_int8_(self.layers)
        self.int8_head = Int8Linear(*ops.quantize_int8(self.wte.weight.data))
        return self

    # --- generation -------------------------------------------------------------------------

    def new_cache(self) -> list[KVCache]:
        """An empty cache, one entry per layer, for `model(ids, cache=cache)`."""
        return [KVCache() for _ in self.layers]

    def generate(
        self, ids: Array, max_new_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
        top_p: float | None = None, repetition_penalty: float = 1.0, eos_token_id: int | None = None,
        seed: int | None = None, attention_mask: Array | None = None, stream: bool = False,
    ) -> Any:  # fmt: skip
        """Continue ids [B, S] by sampling; returns [B, S + new], new <= max_new_tokens.

        temperature 0 takes the most likely token. top_k, top_p: draw from the k likeliest, or from the
        fewest that reach probability p. repetition_penalty: logits of tokens seen so far are divided by it
        where positive, else multiplied (Keskar et al. 2019). A row that has drawn eos_token_id goes on with
        it, and generation ends when every row has. attention_mask [B, S]: 0 for left padding, which then
        takes no positions. stream=True returns an iterator over the new tokens, arrays [B].
        """
        check_sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
        check_ids(ids, self.config.vocab_size, self.config.n_positions)
        if ids.shape[1] + max_new_tokens > self.config.n_positions + 1:
            raise ValueError(
                f"max_new_tokens: the model has {self.config.n_positions} positions, got a prompt of "
                f"{ids.shape[1]} and {max_new_tokens} new tokens"
            )
        key_mask(attention_mask, tuple(ids.shape))
        mask = np.ones(ids.shape, np.int64) if attention_mask is None else to_numpy(attention_mask, "attention_mask")
        if not (mask[:, -1] != 0).all():
            raise ValueError("attention_mask must pad on the left: the last token of every row is kept")
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "rng": np.random.default_rng(seed)}
        tokens = self._stream(ids, max_new_tokens, (mask != 0), repetition_penalty, eos_token_id, settings)
        if stream:
            return tokens
        return np.concatenate([to_numpy(ids, "ids"), *(token[:, None] for token in tokens)], axis=1)

    def _stream(
        self, ids: Array, count: int, mask: np.ndarray, penalty: float, eos: int | None, settings: Any
    ) -> Iterator[np.ndarray]:
        cache, done = self.new_cache(), np.zeros(len(ids), bool)
        seen = np.zeros((len(ids), self.config.vocab_size), bool)
        rows, columns = np.nonzero(mask)
        seen[rows, to_numpy(ids, "ids")[rows, columns]] = True
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        for _ in range(count):
            logits = to_numpy(self._last_logits(ids, mask, positions, cache), "logits")
            if penalty != 1.0:
                logits = repetition_penalised(logits, seen, penalty)
            token = sample(logits, **settings)
            if eos is not None:
                token = np.where(done, eos, token)
                done |= token == eos
            yield token
            if done.all():
                return
            seen[np.arange(len(token)), token] = True
            mask = np.concatenate([mask, np.ones((len(token), 1), bool)], axis=1)
            positions = positions[:, -1:] + 1
            ids = array_module(ids).asarray(token[:, None])

    def _last_logits(self, ids: Array, mask: np.ndarray, positions: np.ndarray, cache: list[KVCache]) -> Array:
        """Logits [B, vocab] after the last of ids, without dropout."""
        module_of = array_module(ids)
        with evaluating(self):
            given = (module_of.asarray(mask), module_of.asarray(positions))
            output, _ = self._body(ids, *given, cache, False, False)
            last: Array = output.last_hidden_state
            return self._logits(last[:, -1])
