"""A task on which looking at the right place must pay: which hand sign is on the yellow card in a surveillance clip?"""
