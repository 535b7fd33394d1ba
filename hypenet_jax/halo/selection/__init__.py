"""The choice of the layers that keep softmax attention: scores, where they come from, rules, and what is chosen.

`halo/select.py` is the stage that has models scored.
"""
