"""The runbook's first page, in Python over gRPC: a key is taken away, followed until every copy is gone, and given back.

    custody --dir DIR up --faults none &
    python examples/runbook/runbook.py DIR proto vaults/contoso/keys/payroll

It needs grpcio and grpcio-tools, and Custody's schemas (proto/).
"""

import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

home, schemas, key = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]

# The schemas become modules; a project of yours has them generated once.
generated = tempfile.mkdtemp()
google = pathlib.Path(grpc_tools.__file__).parent / "_proto"
files = [str(f) for f in schemas.rglob("*.proto")]
arguments = [f"-I{schemas}", f"-I{google}", f"--python_out={generated}", f"--grpc_python_out={generated}", *files]
assert protoc.main(["protoc", *arguments]) == 0
sys.path.insert(0, generated)

from custody.identity.v1 import identity_pb2, identity_pb2_grpc  # noqa: E402
from custody.vault.v1 import (  # noqa: E402
    fault_injection_pb2,
    fault_injection_pb2_grpc,
    key_vault_pb2,
    key_vault_pb2_grpc,
    lease_manager_pb2,
    lease_manager_pb2_grpc,
    lineage_pb2,
    lineage_pb2_grpc,
)

trust = grpc.ssl_channel_credentials((home / "pki/ca.pem").read_bytes())
endpoints = json.loads((home / "deployment.json").read_text())["endpoints"]


def address(service):
    return endpoints[service].removeprefix("https://")


def channel(who):
    """A channel to the vault as a principal, whose token goes with every call."""
    held = json.loads((home / f"credentials/{who}.json").read_text())
    with grpc.secure_channel(address("identity"), trust) as identity:
        request = identity_pb2.IssueTokenRequest(audience="custody-vault", **held)
        token = identity_pb2_grpc.IdentityStub(identity).IssueToken(request).access_token
    bearer = grpc.access_token_call_credentials(token)
    return grpc.secure_channel(address("vault"), grpc.composite_channel_credentials(trust, bearer))


officer, tester = channel("officer"), channel("tester")
vault = key_vault_pb2_grpc.KeyVaultStub(officer)
leases = lease_manager_pb2_grpc.LeaseManagerStub(officer)
faults = fault_injection_pb2_grpc.FaultInjectionStub(tester)

current = vault.GetKey(key_vault_pb2.GetKeyRequest(name=key)).current_version
print(f"{key} is at version {current.name.rsplit('/', 1)[1]}")

# What holds it, and what needs it.
held = leases.ListLeases(lease_manager_pb2.ListLeasesRequest(parent=key)).leases
lineage = lineage_pb2_grpc.KeyLineageStub(officer).GetLineage(lineage_pb2.GetLineageRequest(name=f"{key}/lineage"))
print(f"{len(held)} leases are held; {lineage.versions[0].obstacle}")
assert held and not lineage.versions[0].retirable

# An outage: nobody is answered until the region is back.
faults.LoseRegion(fault_injection_pb2.LoseRegionRequest())
try:
    vault.GetKey(key_vault_pb2.GetKeyRequest(name=key), timeout=1)
    raise SystemExit("the region is away, and somebody answered")
except grpc.RpcError as e:
    # The deadline, by whichever side's clock was first.
    assert e.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED), e
faults.RestoreRegion(fault_injection_pb2.RestoreRegionRequest())
vault.GetKey(key_vault_pb2.GetKeyRequest(name=key), timeout=10, wait_for_ready=True)

# The key is taken away, and each holder followed.
revoked = leases.RevokeKey(lease_manager_pb2.RevokeKeyRequest(name=key))
for seen in leases.WatchRevocation(lease_manager_pb2.WatchRevocationRequest(name=revoked.name), timeout=60):
    waiting = sum(1 for lease in seen.leases if lease.outcome == lease_manager_pb2.LEASE_OUTCOME_WAITING)
    print(f"{len(seen.leases) - waiting} of {len(seen.leases)} copies are gone")
assert seen.HasField("close_time") and waiting == 0
final = leases.GetRevocation(lease_manager_pb2.GetRevocationRequest(name=revoked.name))
assert final.proof, "the vault signs what became of every copy"

# And given back.
back = leases.ReinstateKey(lease_manager_pb2.ReinstateKeyRequest(name=key)).key_versions
print(f"given back: {len(back)} versions. checks passed")
