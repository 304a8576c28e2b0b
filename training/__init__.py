"""How the embedded model is made: data, scenes, autoencoder, transformer, export and evaluation."""
