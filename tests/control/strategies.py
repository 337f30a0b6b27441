"""Values as the server may send them."""

from __future__ import annotations

from hypothesis import strategies as st

from indexify_dataplane.core.model import (
    AllocationSpec,
    ContainerSpec,
    FunctionRef,
    Gpus,
    Kind,
    NetworkPolicy,
    Payload,
    Resources,
    SandboxSpec,
)

text = st.text(max_size=8)
opt_text = st.none() | text
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
opt_u32, opt_u64 = st.none() | u32, st.none() | u64

functions = st.builds(FunctionRef, opt_text, opt_text, opt_text, opt_text)
payloads = st.builds(
    Payload,
    uri=opt_text,
    encoding=st.none() | st.integers(0, 9),
    encoding_version=opt_u64,
    content_type=opt_text,
    metadata_size=opt_u64,
    offset=opt_u64,
    size=opt_u64,
    sha256=opt_text,
    source_function_call_id=opt_text,
    id=opt_text,
)
gpus = st.builds(Gpus, count=u32, model=st.none() | st.integers(0, 6))
resources = st.builds(Resources, opt_u32, opt_u64, opt_u64, st.none() | gpus)
texts = st.lists(text, max_size=3).map(tuple)
policies = st.builds(NetworkPolicy, st.none() | st.booleans(), texts, texts)
sandboxes = st.builds(
    SandboxSpec,
    image=opt_text,
    timeout_secs=opt_u64,
    entrypoint=texts,
    network_policy=st.none() | policies,
    sandbox_id=opt_text,
    snapshot_uri=opt_text,
)
containers = st.builds(
    ContainerSpec,
    id=text,
    kind=st.sampled_from(Kind),
    function=st.none() | functions,
    secret_names=texts,
    initialization_timeout_ms=opt_u32,
    application=st.none() | payloads,
    resources=st.none() | resources,
    max_concurrency=opt_u32,
    allocation_timeout_ms=opt_u32,
    sandbox=st.none() | sandboxes,
    pool_id=opt_text,
)
allocations = st.builds(
    AllocationSpec,
    id=text,
    container_id=text,
    function=functions,
    function_call_id=text,
    request_id=text,
    args=st.lists(payloads, max_size=3).map(tuple),
    request_data_prefix=text,
    request_error_prefix=text,
    metadata=st.binary(max_size=8),
    replay_mode=st.none() | st.integers(0, 2),
    last_event_clock=opt_u64,
)
