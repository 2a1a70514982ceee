"""An EDM2 generator in one file: torch, safetensors and Pillow, and diffusers for its VAE.

    generator = load("FOLDER")                         model.json and model.safetensors
    images = generator.sample(range(16), [88] * 16)    [16, C, H, W]; of latents: pass a decoder
    python generate.py --seeds 16 --label 88 --vae stabilityai/sd-vae-ft-mse --out images.png

Symbols
    sigma, sigma_data   standard deviations of the noise and of the data
    D(x; sigma)         the image in x:  c_skip x + c_out F(c_in x; ln(sigma) / 4)
    t                   the second member's weight in a sum or concatenation
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

SILU = 0.596  # root mean square of silu(N(0, 1))
MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)  # of ImageNet-512's latents


def unit(x, dim):
    """x / (1e-4 + root mean square over dim)."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel()))


def silu(x):
    return F.silu(x) / SILU


def blend(a, b, t):
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def joined(a, b, t):
    """Over channels, each scaled so that the magnitude stays."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    parts = [a * ((1 - t) / math.sqrt(a.shape[1])), b * (t / math.sqrt(b.shape[1]))]
    return torch.cat(parts, dim=1) * total


class EDM2Generator:
    """``__call__(latents, labels, noises)``: N(0, 1) noise [N, C, H, W], one-hot labels
    [N, classes] or None, and a noise for each step after the first -> pixels in [-1, 1] or latents.
    """

    def __init__(self, network, one_step, weights):
        self.net, self.weights = network, weights
        self.sigma, self.steps = one_step["sigma"], one_step.get("num_steps", 1)
        self.classes = network["label_dim"]
        self.mult = network["channel_mult"]
        size = network["img_resolution"]
        self.shape = (network["img_channels"], size, size)

    def to(self, device):
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    @torch.no_grad()
    def __call__(self, latents, labels=None, noises=()):
        image = torch.zeros_like(latents)
        for step, noise in enumerate((latents, *noises)):
            sigma = self.sigma * (self.steps - step) / self.steps
            image = self.denoise(image + sigma * noise, sigma, labels)
        return image

    def sample(self, seeds, labels=None):
        """Images of seeds, each a function of its seed (and class) alone."""
        device = next(iter(self.weights.values())).device
        drawn = []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            drawn.append(torch.randn(self.steps, *self.shape, generator=rng))
        latents, *noises = torch.stack(drawn, 1).to(device)
        if labels is not None:
            labels = F.one_hot(torch.tensor(labels, device=device), self.classes).float()
        return self(latents, labels, noises)

    def denoise(self, x, sigma, labels):
        data = self.net["sigma_data"]
        sigma = torch.full((len(x), 1, 1, 1), sigma, dtype=x.dtype, device=x.device)
        c_in = 1 / (sigma**2 + data**2).sqrt()
        if labels is None:
            labels = x.new_zeros(len(x), self.classes)
        emb = self.embed(sigma.flatten().log() / 4, labels)
        raw = self.decode(self.encode(c_in * x, emb), emb)
        return data**2 / (sigma**2 + data**2) * x + sigma * data * c_in * raw

    # Layers, by the beginning of their tensors' names

    def has(self, name):
        return f"unet.{name}" in self.weights

    def get(self, name):
        return self.weights[f"unet.{name}"].float()

    def layer(self, name, x, gain=1.0):
        """A convolution or linear layer whose weights have unit magnitude."""
        weight = self.get(f"{name}.weight")
        weight = unit(weight, tuple(range(1, weight.ndim))) / math.sqrt(weight[0].numel()) * gain
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding="same")

    def resample(self, x, way):
        if not way:
            return x
        taps = torch.tensor(self.net["resample_filter"], dtype=x.dtype, device=x.device)
        pad, count = (len(taps) - 1) // 2, x.shape[1]
        taps = taps.outer(taps) / taps.sum() ** 2 * (4 if way == "up" else 1)
        run = F.conv_transpose2d if way == "up" else F.conv2d
        taps = taps.expand(count, 1, -1, -1)
        return run(x, taps, stride=2, padding=pad, groups=count)

    def block(self, name, x, emb, way=""):
        encodes, has_skip = name.startswith("enc"), self.has(f"{name}.conv_skip.weight")
        x = self.resample(x, way)
        if encodes:
            x = unit(self.layer(f"{name}.conv_skip", x) if has_skip else x, 1)
        y = self.layer(f"{name}.conv_res0", silu(x))
        scale = self.layer(f"{name}.emb_linear", emb, self.get(f"{name}.emb_gain")) + 1
        y = self.layer(f"{name}.conv_res1", silu(y * scale[:, :, None, None]))
        if has_skip and not encodes:
            x = self.layer(f"{name}.conv_skip", x)
        x = blend(x, y, self.net["res_balance"])
        if self.has(f"{name}.attn_qkv.weight"):
            x = blend(x, self.attention(name, x), self.net["attn_balance"])
        limit = self.net["clip_act"]
        return x.clamp(-limit, limit)

    def attention(self, name, x):
        heads = x.shape[1] // self.net["channels_per_head"]
        qkv = self.layer(f"{name}.attn_qkv", x)
        # Channels of a head lie together, q, k and v of each side by side.
        split = qkv.reshape(len(x), heads, x.shape[1] // heads, 3, -1).permute(3, 0, 1, 4, 2)
        q, k, v = unit(split, -1)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return self.layer(f"{name}.attn_proj", out)

    # The network

    def embed(self, c_noise, labels):
        phase = c_noise.outer(self.get("emb_fourier.freqs")) + self.get("emb_fourier.phases")
        emb = self.layer("emb_noise", math.sqrt(2) * phase.cos())
        if self.classes:
            label = self.layer("emb_label", labels * math.sqrt(self.classes))
            emb = blend(emb, label, self.net["label_balance"])
        return silu(emb)

    def encode(self, x, emb):
        """All skips, full resolution first."""
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []
        for level in range(len(self.mult)):
            at = f"enc.{self.shape[1] >> level}x{self.shape[1] >> level}"
            x = self.block(f"{at}_down", x, emb, "down") if level else self.layer(f"{at}_conv", x)
            skips.append(x)
            for index in range(self.net["num_blocks"]):
                x = self.block(f"{at}_block{index}", x, emb)
                skips.append(x)
        return skips

    def decode(self, skips, emb):
        x, last = skips[-1], len(self.mult) - 1
        for level in reversed(range(len(self.mult))):
            at = f"dec.{self.shape[1] >> level}x{self.shape[1] >> level}"
            if level == last:
                x = self.block(f"{at}_in1", self.block(f"{at}_in0", x, emb), emb)
            else:
                x = self.block(f"{at}_up", x, emb, "up")
            for index in range(self.net["num_blocks"] + 1):
                x = joined(x, skips.pop(), self.net["concat_balance"])
                x = self.block(f"{at}_block{index}", x, emb)
        return self.layer("out_conv", x, self.get("out_gain"))


@torch.no_grad()
def decoded(latents, vae):
    """Latents to pixels in [-1, 1], with a Stable Diffusion VAE by its address or folder."""
    from diffusers import AutoencoderKL

    opened = AutoencoderKL.from_pretrained(vae).to(latents.device)
    mean, std = (latents.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return opened.decode(latents * (std / 0.5) + mean).sample * 2 - 1


def load(folder, device="cpu"):
    """The generator of a folder. Nothing in it is executed."""
    said = json.loads((Path(folder) / "model.json").read_text())
    weights = load_file(Path(folder) / "model.safetensors")
    return EDM2Generator(said["network"], said["one_step"], weights).to(device)


def save_grid(images, path, columns=8):
    """Images [N, C, H, W] in [-1, 1] as one picture."""
    from PIL import Image

    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()
    rows = [torch.cat(list(row), dim=2) for row in pixels.split(columns)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2])) for row in rows]
    array = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def main():
    parser = argparse.ArgumentParser(description="Makes images with the generator of this folder.")
    parser.add_argument("--seeds", type=int, default=16, help="how many, from 0")
    parser.add_argument("--label", type=int, help="class of all images; without it none is told")
    parser.add_argument("--vae", help="where the network makes latents: what decodes them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="images.png")
    asked = parser.parse_args()
    generator = load(Path(__file__).parent, asked.device)
    labels = None if asked.label is None else [asked.label] * asked.seeds
    images = generator.sample(range(asked.seeds), labels)
    save_grid(decoded(images, asked.vae) if asked.vae else images, asked.out)


if __name__ == "__main__":
    main()
