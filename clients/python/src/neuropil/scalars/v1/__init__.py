"""Contract of derived scalars: `from neuropil.scalars import v1`."""

from neuropil.scalars.v1.inference_pb2 import *
from neuropil.scalars.v1.scalars_service_pb2 import *
from neuropil.scalars.v1.scalars_service_pb2_grpc import DerivedScalarsStub as DerivedScalarsStub
