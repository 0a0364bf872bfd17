"A part of one's own for each kind, as arms.py may bring them. The formulas are in numpy, what trains is in torch."
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ablation_nb.config import (
    Arm, Attention, Block, Head, Norm, Objective, Position, register_arm, register_part, register_rule, surprises)
from ablation_nb.layers import CausalSelfAttention, Linear, TiedHead
from ablation_nb.model import TransformerBlock


class Near(nn.Module):
    "What a key behind the query loses, by the root of the distance."
    def __init__(self, cfg):
        super().__init__()
        self.n_heads = cfg.n_heads

    def forward(self, at_BT, n_keys):
        back = (at_BT[..., None, :, None] - torch.arange(n_keys, device=at_BT.device)).abs()
        return -back.float().sqrt().expand(*back.shape[:-3], self.n_heads, *back.shape[-2:])


def near(T, cfg):
    back = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    return np.repeat(-np.sqrt(back)[None], cfg.n_heads, 0)


class Squashed(CausalSelfAttention):
    def bend(self, scores): return torch.asinh(scores)


class HalfBlock(TransformerBlock):
    "The feed-forward layer counts half."
    def forward(self, x, causal=True, *cached):
        x = x + self.attn(self.norm1(x), causal, *cached)
        return x + self.ffn(self.norm2(x)) / 2


def half(x, attention, feed_forward, norm):
    x = x + attention(norm(x, "norm1"))
    return x + feed_forward(norm(x, "norm2")) / 2


class CappedHead(Linear):
    def __init__(self, cfg): super().__init__(cfg.d_model, cfg.vocab_size)

    def forward(self, x): return 3 * torch.tanh(super().forward(x) / 3)


class HalfTied(TiedHead):
    "Half of what the embedding says."
    @property
    def weight(self): return super().weight / 2


class ClippedNorm(nn.Module):
    def __init__(self, d_model, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x): return x.clamp(-1, 1) * self.weight


class NormsAfter(TransformerBlock):
    "A norm behind each branch, as in OLMo 2."
    def forward(self, x, causal=True, *cached):
        x = x + self.norm1(self.attn(x, causal, *cached))
        return x + self.norm2(self.ffn(x))


def norms_after(x, attention, feed_forward, norm):
    x = x + norm(attention(x), "norm1")
    return x + norm(feed_forward(x), "norm2")


class Summed(CausalSelfAttention):
    "Attention without a call that torch has for it."
    def attend(self, q, k, v, causal, at_BT):
        at = torch.arange(q.shape[-2], device=q.device) if at_BT is None else at_BT
        back = at[..., None, :, None] - torch.arange(k.shape[-2], device=q.device)
        scores = torch.einsum("bhtk,bhsk->bhts", q, k) / q.shape[-1] ** 0.5
        if causal: scores = scores.masked_fill(back < 0, -torch.inf)
        return torch.einsum("bhts,bhsk->bhtk", scores.softmax(-1), v)


def slow(T, cfg):
    pairs = cfg.d_head // 2
    return np.outer(np.arange(T), 50.0 ** (-np.arange(pairs) / pairs))


class Tabled(nn.Module):
    "Turns that stand in buffers, as long as the context."
    def __init__(self, cfg):
        super().__init__()
        angles = torch.from_numpy(slow(cfg.context_length, cfg)).float()
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, z, at_BT=None):
        at = torch.arange(z.shape[-2], device=z.device) if at_BT is None else at_BT
        cos, sin = (table[at] if at_BT is None else table[at].unsqueeze(1) for table in (self.cos, self.sin))
        a, b = z.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


register_part("position", "near", Position(bias=near, layer=Near))
register_part("attention", "squashed", Attention(scores=np.arcsinh, layer=Squashed))
register_part("placement", "half", Block(half, layer=HalfBlock))
register_part("head", "capped", Head(lambda x, w: 3 * np.tanh(x @ w.T / 3), layer=CappedHead))
register_part("head", "half_tied", Head(
    lambda x, w: x @ w.T / w.shape[1] ** 0.5 / 2, tied=True, layer=lambda cfg, embed: HalfTied(embed)))
register_part("attention", "one_kv", Attention(kv_heads=lambda H: 1, layer=CausalSelfAttention))
register_part("norm", "clipped", Norm(lambda x, eps: np.clip(x, -1, 1), layer=ClippedNorm))
register_arm(Arm("near", "Near", "scores fall with the root of distance", {"position": "near"}))
register_arm(Arm("squashed", "Squashed", "asinh of the scores", {"attention": "squashed"}))
register_arm(Arm("half", "Half", "the feed-forward layer counts half", {"placement": "half"}))
register_arm(Arm("capped", "Capped", "logits capped at 3", {"head": "capped"}))
register_arm(Arm("half_tied", "Half tied", "half of the embedding as output layer", {"head": "half_tied"}))
register_arm(Arm("one_kv", "One head of keys", "all heads share keys and values", {"attention": "one_kv"}))
register_arm(Arm("clipped", "Clipped", "clipping for a norm", {"norm": "clipped"}))
register_part("placement", "after", Block(norms_after, layer=NormsAfter, needs_norms=True))
register_part("attention", "summed", Attention(kv_heads=lambda H: 1, layer=Summed))
register_part("position", "tabled", Position(angles=slow, layer=Tabled))
register_rule("init", "narrow", lambda name, shape, cfg: 1.0 if name.startswith("embed") else 0.03)
register_rule("schedule", "root", lambda share: 1 - np.sqrt(share))
register_arm(Arm("after", "Norms after", "a norm behind each branch", {"placement": "after"}))
register_arm(Arm("summed", "Summed", "one head of keys, by einsum", {"attention": "summed"}))
register_arm(Arm("tabled", "Tabled", "slow turns from a table", {"position": "tabled"}))
register_arm(Arm("narrow", "Narrow", "linear maps from N(0, 0.03²)", {"init": "narrow"}))
register_arm(Arm("root", "Root", "the rate falls by a square root", {"schedule": "root"}))
register_rule("objective", "smooth", Objective(
    lambda z, t: 0.9 * surprises(z, t) + 0.1 * (np.logaddexp.reduce(z, -1) - z.mean(-1)),
    lambda z, t: F.cross_entropy(z, t, reduction="none", label_smoothing=0.1)))
register_arm(Arm("smooth", "Smooth", "labels smoothed by a tenth", {"objective": "smooth"}))
