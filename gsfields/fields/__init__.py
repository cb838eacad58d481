"""Fields on Gaussians beyond colour: embeddings, and what becomes of them."""
