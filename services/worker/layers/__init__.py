"""The parts a decoder is built from, each a callable over tensors. They know nothing of tensor names, files or devices."""
