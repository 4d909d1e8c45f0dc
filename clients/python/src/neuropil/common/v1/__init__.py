"""Messages and enums that all services share: `from neuropil.common import v1`."""

from neuropil.common.v1.component_pb2 import *
from neuropil.common.v1.derived_scalar_type_pb2 import *
from neuropil.common.v1.sequences_pb2 import *
from neuropil.common.v1.tensor_pb2 import *
