"""Try backbones on a sample of a corpus: which is better, by how much, and what embedding the rest would cost."""
