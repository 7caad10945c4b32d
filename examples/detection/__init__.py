"""Train a detector on photos with boxes: a DINO backbone, a neck and a head of torchvision or transformers."""
