"""Trace context, the same in every service.

It is W3C's, carried in headers, in gRPC metadata and inside the queue's payload, so that a worker's spans
join the router's trace. It knows nothing of what the events mean.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.pb import types_pb2

_PROPAGATOR = TraceContextTextMapPropagator()

tracer = trace.get_tracer("roadtrain")


def context_from_headers(headers: Mapping[str, str]) -> types_pb2.TraceContext:
    """The caller's trace context from lower-case `headers`; empty if there is none or it is malformed."""
    return inject(_PROPAGATOR.extract(dict(headers), Context()))


def inject(context: Context | None = None) -> types_pb2.TraceContext:
    """`context`, or the current one, as it travels in a payload."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return types_pb2.TraceContext(traceparent=carrier.get("traceparent", ""), tracestate=carrier.get("tracestate", ""))


def extract(carried: types_pb2.TraceContext) -> Context:
    """The context to start spans under for a request that carries `carried`."""
    return _PROPAGATOR.extract({"traceparent": carried.traceparent, "tracestate": carried.tracestate}, Context())
