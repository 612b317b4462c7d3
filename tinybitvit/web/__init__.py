"""A trained model as one web page that holds everything: weights, forward pass, and a canvas to draw on."""
