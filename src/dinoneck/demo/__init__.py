"""Generated images with known labels: a pasture and a grove."""
