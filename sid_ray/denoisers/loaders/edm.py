"""An EDM generator (DDPM++, NCSN++ or ADM) in one file: torch, safetensors and Pillow, no more.

    generator = load("FOLDER")                        model.json and model.safetensors
    images = generator.sample(range(16), [3] * 16)    [16, C, H, W] in [-1, 1]
    python generate.py --seeds 16 --out images.png

Symbols
    sigma, sigma_data   standard deviations of the noise and of the data
    D(x; sigma)         the image in x:  c_skip x + c_out F(c_in x; ln(sigma) / 4)
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

HALF = math.sqrt(0.5)


class EDMGenerator:
    """``__call__(latents, labels, noises)``: N(0, 1) noise [N, C, H, W], one-hot labels
    [N, classes] or None, and a noise for each step after the first -> images in [-1, 1].
    """

    def __init__(self, network, one_step, weights):
        self.net, self.weights = network, weights
        self.sigma, self.steps = one_step["sigma"], one_step.get("num_steps", 1)
        self.adm = network["model_type"] == "DhariwalUNet"
        self.eps, self.skip_scale = (1e-5, 1.0) if self.adm else (1e-6, HALF)
        self.classes = network["label_dim"]
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
        return f"model.{name}" in self.weights

    def get(self, name):
        return self.weights[f"model.{name}"].float()

    def linear(self, name, x):
        bias = self.get(f"{name}.bias") if self.has(f"{name}.bias") else None
        return F.linear(x, self.get(f"{name}.weight"), bias)

    def norm(self, name, x):
        groups = min(32, x.shape[1] // 4)
        return F.group_norm(
            x, groups, self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.eps
        )

    def resample(self, x, up, pad):
        """By two, with the network's filter."""
        taps = torch.tensor(self.net["resample_filter"], dtype=x.dtype, device=x.device)
        taps = taps.outer(taps)[None, None] / taps.sum() ** 2 * (4 if up else 1)
        taps, count = taps.expand(x.shape[1], 1, -1, -1), x.shape[1]
        run = F.conv_transpose2d if up else F.conv2d
        return run(x, taps, stride=2, padding=pad, groups=count)

    def conv(self, name, x, way="", fused=False):
        """``way``: up or down, before the convolution; ``fused``: after it, before the bias."""
        pad = (len(self.net["resample_filter"]) - 1) // 2
        if way and not fused:
            x = self.resample(x, way == "up", pad)
        if not self.has(f"{name}.weight"):
            return x
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        if not fused:
            return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2 + pad)
        return self.resample(x, False, 0) + bias[:, None, None]

    def block(self, name, x, emb, way=""):
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), way)
        affine = self.linear(f"{name}.affine", emb)[:, :, None, None]
        if self.adm:
            scale, shift = affine.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm(f"{name}.norm1", h), scale + 1))
        else:
            h = F.silu(self.norm(f"{name}.norm1", h + affine))
        h = self.conv(f"{name}.conv1", h)
        if way or self.has(f"{name}.skip.weight"):
            x = self.conv(f"{name}.skip", x, way)
        x = (h + x) * self.skip_scale
        if not self.has(f"{name}.qkv.weight"):
            return x
        heads = x.shape[1] // 64 if self.adm else 1
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
        # [B, heads, C, 3, N]: channels of a head lie together, q, k and v of each side by side
        q, k, v = qkv.reshape(len(x), heads, x.shape[1] // heads, 3, -1).transpose(2, 4).unbind(3)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return (self.conv(f"{name}.proj", out) + x) * self.skip_scale

    # The network

    def embed(self, c_noise, labels):
        width = self.get("map_layer0.weight").shape[1]
        if self.has("map_noise.freqs"):
            phase = c_noise.outer(2 * math.pi * self.get("map_noise.freqs"))
        else:
            index = torch.arange(width // 2, dtype=c_noise.dtype, device=c_noise.device)
            phase = c_noise.outer((1 / 10000) ** (index / (width // 2 - (not self.adm))))
        waves = [phase.cos(), phase.sin()] if self.adm else [phase.sin(), phase.cos()]
        emb = torch.cat(waves, dim=1)
        if self.classes and not self.adm:
            emb = emb + self.linear("map_label", labels * math.sqrt(self.classes))
        emb = self.linear("map_layer1", F.silu(self.linear("map_layer0", emb)))
        if self.classes and self.adm:
            emb = emb + self.linear("map_label", labels)
        return F.silu(emb)

    def encode(self, x, emb):
        """All skips, full resolution first."""
        kind, skips, aux = self.net["encoder_type"], [], x
        for level in range(len(self.net["channel_mult"])):
            at = f"enc.{self.shape[1] >> level}x{self.shape[1] >> level}"
            if level == 0:
                x = self.conv(f"{at}_conv", x)
            else:
                x = self.block(f"{at}_down", x, emb, "down")
            if level and kind == "skip":
                aux = self.conv(f"{at}_aux_down", aux, "down")
                x = x + self.conv(f"{at}_aux_skip", aux)
            if level and kind == "residual":
                x = aux = (x + self.conv(f"{at}_aux_residual", aux, "down", fused=True)) * HALF
            skips.append(x)
            for index in range(self.net["num_blocks"]):
                x = self.block(f"{at}_block{index}", x, emb)
                skips.append(x)
        return skips

    def decode(self, skips, emb):
        x, aux, levels = skips[-1], None, len(self.net["channel_mult"])
        for level in reversed(range(levels)):
            at = f"dec.{self.shape[1] >> level}x{self.shape[1] >> level}"
            if level == levels - 1:
                x = self.block(f"{at}_in1", self.block(f"{at}_in0", x, emb), emb)
            else:
                x = self.block(f"{at}_up", x, emb, "up")
            for index in range(self.net["num_blocks"] + 1):
                x = self.block(f"{at}_block{index}", torch.cat([x, skips.pop()], dim=1), emb)
            if self.has(f"{at}_aux_conv.weight"):
                out = self.conv(f"{at}_aux_conv", F.silu(self.norm(f"{at}_aux_norm", x)))
                aux = out if aux is None else out + self.conv(f"{at}_aux_up", aux, "up")
        return self.conv("out_conv", F.silu(self.norm("out_norm", x))) if self.adm else aux


def load(folder, device="cpu"):
    """The generator of a folder. Nothing in it is executed."""
    said = json.loads((Path(folder) / "model.json").read_text())
    weights = load_file(Path(folder) / "model.safetensors")
    return EDMGenerator(said["network"], said["one_step"], weights).to(device)


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="images.png")
    asked = parser.parse_args()
    generator = load(Path(__file__).parent, asked.device)
    labels = None if asked.label is None else [asked.label] * asked.seeds
    save_grid(generator.sample(range(asked.seeds), labels), asked.out)


if __name__ == "__main__":
    main()
