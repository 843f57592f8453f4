"""What several tests share: tiny networks, tiny runs, files made on the spot."""
