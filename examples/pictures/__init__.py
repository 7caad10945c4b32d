"""The pictures of docs/how-to/pictures.md: drawn pastures, their features as colours, a head's heat maps."""
