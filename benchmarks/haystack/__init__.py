"""A task that only the right patches solve: which hand sign is on the yellow card in a surveillance clip?"""
