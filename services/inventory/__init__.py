"""Owns products and their stock; sets stock aside for orders."""
