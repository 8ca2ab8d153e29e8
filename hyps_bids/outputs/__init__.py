"""What we write.

Names, columns, labels, quality bounds, sidecars, writers and readers. Never imports torch.
"""
