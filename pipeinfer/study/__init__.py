"""Reproducing the paper: recipes are run cell by cell, recorded, analysed, drawn, judged and reported."""
