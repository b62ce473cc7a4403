"""From a PIL image to the model's input."""
from torchvision import transforms as T

MEAN = (0.48145466, 0.4578275, 0.40821073)   # of CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)


def build_transforms(img_size=(384, 128), aug=False, is_train=True):
    """A ``Compose`` from a PIL image to a float tensor [3, H, W] with CLIP's mean and deviation.

    Evaluation resizes only, training also flips, and with ``aug`` pads, crops and erases as IRRA's released code does:
    the erased rectangle is filled after normalising, with the mean's numbers, which are a light grey there and not the
    mean.
    """
    img_size = tuple(img_size)
    steps = [T.Resize(img_size)]
    if is_train:
        steps += [T.RandomHorizontalFlip(0.5)]
    if is_train and aug:
        steps += [T.Pad(10), T.RandomCrop(img_size)]
    steps += [T.ToTensor(), T.Normalize(MEAN, STD)]
    if is_train and aug:
        steps += [T.RandomErasing(p=0.5, scale=(0.02, 0.4), ratio=(0.3, 3.3), value=MEAN)]
    return T.Compose(steps)
