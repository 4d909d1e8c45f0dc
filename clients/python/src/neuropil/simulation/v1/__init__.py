"""Contract of simulation: `from neuropil.simulation import v1`."""

from neuropil.simulation.v1.scoring_pb2 import *
from neuropil.simulation.v1.simulation_pb2 import *
from neuropil.simulation.v1.simulation_service_pb2 import *
from neuropil.simulation.v1.simulation_service_pb2_grpc import SimulationStub as SimulationStub
