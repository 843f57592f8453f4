"""From a folder of images to a network: choose a recipe, write its config, train it and report."""
