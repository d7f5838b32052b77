"""Graphs as TensorRT-RTX parses and builds them, which it does without a GPU."""

from __future__ import annotations

from adafocus_edge.model.spec import contract


def parsed(path, spec, name, build=True):
    """Parse a graph as a strongly typed network with TensorRT-RTX, and build it; its layers."""
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(n).desc() for n in range(parser.num_errors)]
    if build:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        profile = builder.create_optimization_profile()
        for tensor in contract(spec, name)[0]:
            shape = tensor.shape[1:]
            profile.set_shape(tensor.name, (1, *shape), (1, *shape), (16, *shape))
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        assert engine is not None
        assert engine.nbytes > 1000
    found = [network.get_layer(number) for number in range(network.num_layers)]
    return trt, parser, network, found
