"""The decoder of train_lighthouse in PyTorch: what tests and comparisons check the program against.

Parameters have the names and shapes of Hugging Face's Llama. They may be kept in another type than the one computed
in: with float32 parameters and dtype=torch.bfloat16 every layer rounds its weights on the way in, and gradients arrive
in float32. That is bfloat16 weights with float32 master weights, as the program trains.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lighthouse import accumulator, lighthouse_attention, turn


@dataclass
class Config:
    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.dim // self.heads


def rope_table(config, seq_len, device, dtype):
    """Cosines and sines [seq_len, head_dim / 2] of position t times theta^(-2j / head_dim), formed in float64."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64, device=device), config.rope_theta**-exponent)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x, table):
    """Turns x [batch, seq_len, heads, head_dim] by the table's angles."""
    return turn(x, *(part[:, None, :] for part in table))


def dense_attention(query, key, value):
    """out [batch, seq_len, heads, head_dim] of queries, keys and values that lie like it."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
        is_causal=True, enable_gqa=query.shape[2] != key.shape[2])
    return out.transpose(1, 2)


class Linear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        wide = accumulator(x)
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * rstd * self.weight.to(x.dtype)).to(x.dtype)


class Attention(nn.Module):
    """Of the geometry (Lighthouse attention), or dense if that is None."""

    def __init__(self, config, geometry):
        super().__init__()
        self.head_dim, self.geometry = config.head_dim, geometry
        self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.dim)

    def forward(self, x, rope):
        query, key, value = (projection(x).unflatten(-1, (-1, self.head_dim))
                             for projection in (self.q_proj, self.k_proj, self.v_proj))
        turns_entries = self.geometry is not None and self.geometry.rope_pooling == "after"
        if not turns_entries:
            query, key = apply_rope(query, rope), apply_rope(key, rope)
        if self.geometry is None:
            out = dense_attention(query, key, value)
        else:
            out = lighthouse_attention(query, key, value, self.geometry, rope=rope if turns_entries else None)
        return self.o_proj(out.flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.dim, config.ffn_dim)
        self.up_proj = Linear(config.dim, config.ffn_dim)
        self.down_proj = Linear(config.ffn_dim, config.dim)

    def forward(self, x):
        gate, up = accumulator(self.gate_proj(x)), accumulator(self.up_proj(x))
        return self.down_proj((F.silu(gate) * up).to(x.dtype))


class Layer(nn.Module):
    def __init__(self, config, geometry):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, geometry)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x, rope):
        x = x + self.self_attn(self.input_layernorm(x), rope)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Everything up to the head: tokens [batch, seq_len] to normalized [batch, seq_len, dim]."""

    def __init__(self, config, dtype, geometry, dense_layers):
        super().__init__()
        self.dtype = dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            Layer(config, None if layer in dense_layers else geometry) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, tokens, rope):
        x = self.embed_tokens(tokens).to(self.dtype)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)


class Decoder(nn.Module):
    """With Lighthouse attention of the geometry in all layers but the dense ones; without one, all layers are dense."""

    def __init__(self, config, dtype=torch.float32, geometry=None, dense_layers=()):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.model = Trunk(config, dtype, geometry, dense_layers)
        self.lm_head = Linear(config.dim, config.vocab_size)

    def hidden(self, tokens):
        table_dtype = torch.promote_types(self.dtype, torch.float32)
        return self.model(tokens, rope_table(self.config, tokens.shape[1], tokens.device, table_dtype))

    def logits(self, tokens):
        return self.lm_head(self.hidden(tokens))

    def loss(self, tokens, targets, chunk=8192):
        """The sum of cross-entropies over all targets; logits are made, and made again, `chunk` tokens at a time."""
        hidden, targets = self.hidden(tokens).flatten(0, 1), targets.flatten()
        parts = [checkpoint(self.chunk_loss, hidden[i:i + chunk], targets[i:i + chunk], use_reentrant=False)
                 for i in range(0, len(targets), chunk)]
        return torch.stack(parts).sum()

    def chunk_loss(self, hidden, targets):
        return F.cross_entropy(accumulator(self.lm_head(hidden)), targets, reduction="sum")

    def compile_parts(self):
        self.model.compile()
        self.chunk_loss = torch.compile(self.chunk_loss)


def parameter_groups(model, weight_decay):
    """For an optimizer: decay on every two-dimensional tensor, none on the norms."""
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if p.dim() == 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
