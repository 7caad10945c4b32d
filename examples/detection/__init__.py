"""Train a detector on images with boxes: a DINO backbone, a neck and a head of torchvision or transformers."""
