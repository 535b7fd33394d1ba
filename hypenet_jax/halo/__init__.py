"""HALO (arXiv 2601.22156): transfer, align (stage 1), select, distil (stage 2), finetune (stage 3).

Each stage is a loss and what moves; none owns a loop, and none imports another. They meet in saved weights.
"""
