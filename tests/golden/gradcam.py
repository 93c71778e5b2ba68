"""Makes gradcam.json: maps of the package pytorch-grad-cam for `hybrid` and `resnet_densenet`, for the test in trainer/src/gradcam/golden.rs.

    pip install torch==2.11.0 torchvision==0.26.0 numpy grad-cam==1.5.7 && python tests/golden/gradcam.py

Weights and pixels are those of hybrid.py's hash. One image with three patches; every ninth number of each map is kept.
`attention` is what torch.nn.MultiheadAttention returns for the image's token: its share of each patch, averaged over heads.
"""

import json
import pathlib

import torch
import torchvision
from hybrid import hashed, pictures, weight
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

SETUP = {"name": "gradcam", "global_size": 96, "patch_size": 64, "patches": 3, "every": 9}
# The image's logits follow the global branch, the cells' the local one.
GLOBAL, LOCAL = 0, 1


class OfBranch(nn.Module):
    """`hybrid` as a function of one branch's pictures."""

    def __init__(self, model, whole, parts, branch):
        super().__init__()
        self.model, self.whole, self.parts, self.branch = model, whole, parts, branch

    def forward(self, x):
        whole = x if self.branch == GLOBAL else self.whole
        parts = x if self.branch == LOCAL else self.parts
        return self.model(whole, parts, [len(self.parts)])[self.branch]


class ResNetDenseNet(nn.Module):
    """docs/models.md; the ReLU behind DenseNet's last normalisation is a module, whose output are the maps."""

    def __init__(self, classes):
        super().__init__()
        self.resnet = torchvision.models.resnet50(weights=None)
        self.densenet = torchvision.models.densenet121(weights=None)
        self.resnet.fc, self.densenet.classifier = nn.Identity(), nn.Identity()
        self.last = nn.ReLU()
        self.head = nn.Sequential(nn.Linear(3072, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, classes))

    def forward(self, x):
        maps = self.last(self.densenet.features(x))
        return self.head(torch.cat([self.resnet(x), maps.mean(dim=(2, 3))], 1))


def kept(maps):
    return [[round(float(v), 6) for v in m.reshape(-1)[:: SETUP["every"]]] for m in maps]


model = hashed().eval()
whole = pictures(SETUP["name"] + ".globals", 1, SETUP["global_size"])
parts = pictures(SETUP["name"] + ".patches", SETUP["patches"], SETUP["patch_size"])
golden = {"setup": SETUP, "global": [], "local": []}
for branch, name, net, x in [(GLOBAL, "global", model.global_branch, whole), (LOCAL, "local", model.local_branch, parts)]:
    for c in range(4):
        with GradCAM(model=OfBranch(model, whole, parts, branch), target_layers=[net.layer4[-1]]) as cam:
            maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(c)] * len(x))
        golden[name].append(kept(maps))

weights = []
attn = model.attn.forward
model.attn.forward = lambda *a, **k: weights.append(attn(*a, **{**k, "need_weights": True})[1]) or attn(*a, **k)
with torch.no_grad():
    model(whole, parts, [len(parts)])
golden["attention"] = [float(v) for v in weights[0][0, 0, 1:]]

both = ResNetDenseNet(4)
state = {k: v if k.endswith("num_batches_tracked") else weight(k, v.shape) for k, v in both.state_dict().items()}
both.load_state_dict(state)
both.eval()
golden["resnet_densenet"] = {"resnet": [], "densenet": []}
for name, layer in [("resnet", both.resnet.layer4[-1]), ("densenet", both.last)]:
    for c in range(4):
        with GradCAM(model=both, target_layers=[layer]) as cam:
            maps = cam(input_tensor=whole, targets=[ClassifierOutputTarget(c)])
        golden["resnet_densenet"][name].append(kept(maps))
path = pathlib.Path(__file__).with_name("gradcam.json")
path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
print(path, path.stat().st_size, "bytes; attention", golden["attention"])
