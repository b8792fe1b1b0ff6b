"""The mesh as data: ports, targets and environments. Pure; nothing is started."""

from itertools import chain

import pytest

from deploy.local import mesh

INHERITED = {
    "PATH": "/bin",
    "PAYMESH_POSTGRES_DSN": "postgresql://admin:secret@db/postgres",
    "PAYMESH_INVENTORY_DATABASE_DSN": "postgresql://inventory:secret@db/inventory",
    "PAYMESH_PAYMENT_LOG_LEVEL": "debug",
    "PAYMESH_PAYMENT_LISTEN": "127.0.0.1:1",
}


def environment_of(name: str, layout: mesh.Plan, inherited: dict[str, str] | None = None) -> dict[str, str]:
    (instance,) = [instance for instance in layout.instances if instance.name == name]
    return mesh.environment_of(
        instance,
        layout,
        dsn=f"postgresql://{name}@/{name}",
        valkey_url="redis://valkey",
        inherited=INHERITED if inherited is None else inherited,
    )


def test_every_service_has_its_documented_port() -> None:
    ports = {instance.name: instance.port for instance in mesh.plan().instances}
    assert ports == {
        "orchestrator": 7100,
        "payment": 7101,
        "inventory": 7102,
        "shipping": 7103,
        "fraud": 7104,
        "reconciler": 7105,
        "edge": 7108,
        "bank": 7110,
    }


@pytest.mark.parametrize("base_port", [7100, 1024, 60000])
def test_no_two_processes_share_a_port_however_many_replicas_there_are(base_port: int) -> None:
    replicas = {service.name: mesh.REPLICAS_MAX for service in mesh.SERVICES}
    layout = mesh.plan(base_port=base_port, replicas=replicas)
    ports = [*chain.from_iterable(instance.ports for instance in layout.instances)]
    ports += [layout.postgres_port, layout.valkey_port]
    assert len(ports) == len(set(ports)) == 2 * len(mesh.SERVICES) * mesh.REPLICAS_MAX + 2
    assert min(ports) >= base_port
    assert max(ports) <= mesh.port_last(base_port)


def test_a_service_starts_after_those_it_calls() -> None:
    names = [service.name for service in mesh.SERVICES]
    for service in mesh.SERVICES:
        assert all(names.index(callee) < names.index(service.name) for callee in service.calls)


def test_a_caller_is_told_the_addresses_of_all_replicas() -> None:
    environment = environment_of("orchestrator", mesh.plan(replicas={"payment": 2}))
    assert environment["PAYMESH_ORCHESTRATOR_PAYMENT_TARGET"] == "ipv4:127.0.0.1:7101,127.0.0.1:7121"
    assert environment["PAYMESH_ORCHESTRATOR_INVENTORY_TARGET"] == "127.0.0.1:7102"
    assert environment["PAYMESH_ORCHESTRATOR_SHIPPING_TARGET"] == "127.0.0.1:7103"


def test_a_replica_has_its_own_address_and_its_services_database() -> None:
    layout = mesh.plan(replicas={"payment": 2})
    environment = environment_of("payment-2", layout)
    assert environment["PAYMESH_PAYMENT_LISTEN"] == "127.0.0.1:7121"
    assert environment["PAYMESH_PAYMENT_METRICS_LISTEN"] == "127.0.0.1:7321"
    assert environment["PAYMESH_PAYMENT_BANK_TARGET"] == "127.0.0.1:7110"
    assert environment["PAYMESH_PAYMENT_FRAUD_TARGET"] == "127.0.0.1:7104"


def test_a_process_does_not_see_the_passwords_of_others() -> None:
    environment = environment_of("payment", mesh.plan())
    assert not [value for value in environment.values() if "secret" in value]
    assert "PAYMESH_FRAUD_VALKEY_URL" not in environment
    assert environment["PATH"] == "/bin"


def test_the_user_turns_knobs_and_replaces_targets_but_not_addresses() -> None:
    inherited = INHERITED | {"PAYMESH_PAYMENT_BANK_TARGET": "bank.example:443"}
    environment = environment_of("payment", mesh.plan(), inherited)
    assert environment["PAYMESH_PAYMENT_LOG_LEVEL"] == "debug"
    assert environment["PAYMESH_PAYMENT_BANK_TARGET"] == "bank.example:443"
    assert environment["PAYMESH_PAYMENT_LISTEN"] == "127.0.0.1:7101"


def test_only_those_that_use_valkey_are_told_where_it_is() -> None:
    layout = mesh.plan()
    told = [i.name for i in layout.instances if "redis://valkey" in environment_of(i.name, layout).values()]
    assert told == [name for name in (i.name for i in layout.instances) if name != "bank"]


def test_a_secret_is_kept_unless_the_user_has_one() -> None:
    layout = mesh.plan()
    (edge,) = layout.of(mesh.EDGE)
    told = [
        mesh.environment_of(
            edge, layout, dsn="", valkey_url=None, inherited=inherited, settings={"VAULT_KEY": "kept"}
        )["PAYMESH_EDGE_VAULT_KEY"]
        for inherited in ({}, {"PAYMESH_EDGE_VAULT_KEY": "the user's"})
    ]
    assert told == ["kept", "the user's"]


def test_the_processor_is_chosen_by_a_short_name_and_only_payment_hears_of_its_key() -> None:
    inherited = {"PAYMESH_PROCESSOR": "stripe", "PAYMESH_STRIPE_KEY": "sk_test_1"}
    layout = mesh.plan()
    payment = environment_of("payment", layout, inherited)
    assert payment["PAYMESH_PAYMENT_PROCESSOR"] == "stripe"
    assert payment["PAYMESH_PAYMENT_STRIPE_KEY"] == "sk_test_1"
    for instance in layout.instances:
        if instance.name != "payment":
            assert "sk_test_1" not in environment_of(instance.name, layout, inherited).values()
    longer = {**inherited, "PAYMESH_PAYMENT_PROCESSOR": "bank"}
    assert environment_of("payment", layout, longer)["PAYMESH_PAYMENT_PROCESSOR"] == "bank"
