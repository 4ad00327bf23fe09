"""Jobs over images: list, decode, embed, predict."""
