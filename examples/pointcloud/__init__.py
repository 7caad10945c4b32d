"""From images with known cameras to a 3D U-Net that sees them."""
