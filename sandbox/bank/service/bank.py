"""The RPCs of the bank: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import Sequence

from paymesh.bank.v1 import bank_pb2 as pb
from paymesh.bank.v1 import bank_pb2_grpc
from sandbox.bank import domain, store, tokenization
from sandbox.bank.domain import (
    Authorization,
    AuthorizeWish,
    Hold,
    Identity,
    KeyedVoid,
    Kind,
    Operation,
    Result,
    VoidWish,
)
from sandbox.bank.faults import Target
from sandbox.bank.mishaps import Context, Mishaps
from sandbox.bank.service import messages
from sandbox.bank.service.movements import Movements
from services.kit.checks import Checks, check_key
from services.kit.clock import now
from services.kit.db import Database, Sent, Transaction, committed
from services.kit.deadline import Deadline
from services.kit.errors import Invalid, PaymeshError, Refused
from services.kit.rpc.failures import to_failure
from services.kit.rpc.method import BATCH_SIZE_MAX, SetMethod
from services.kit.sets import Answer, Command, Failed, Outcome, Pending

NAME = "paymesh.bank.v1.BankService"


class BankService(bank_pb2_grpc.BankServiceServicer):
    """See the contract, paymesh/bank/v1/bank.proto."""

    def __init__(
        self,
        database: Database,
        mishaps: Mishaps,
        *,
        token_secret: bytes,
    ) -> None:
        self._database = database
        self._mishaps = mishaps
        self._token_secret = token_secret
        self._authorize: SetMethod[AuthorizeWish, pb.AuthorizeResponse] = SetMethod(
            f"{NAME}/Authorize",
            parse=messages.authorize_wish,
            handle=self._handle_authorize,
            batch_response=pb.BatchAuthorizeResponse,
            id_prefix="auth",
        )
        self._void: SetMethod[VoidWish, pb.VoidResponse] = SetMethod(
            f"{NAME}/Void",
            parse=messages.void_wish,
            handle=self._handle_void,
            batch_response=pb.BatchVoidResponse,
        )
        self._movements = Movements(database, self._mishaps)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out, except what is slow."""
        await self._authorize.drain()
        await self._void.drain()
        await self._movements.drain()

    async def TokenizeCard(
        self, request: pb.TokenizeCardRequest, context: Context
    ) -> pb.TokenizeCardResponse:
        card = tokenization.CardNumber(request.number, request.expiry_month, request.expiry_year, request.cvc)
        token = tokenization.tokenize(card, now().date(), self._token_secret)
        return pb.TokenizeCardResponse(token=token.token, bin=token.bin, last4=token.last4, brand=token.brand)

    async def Authorize(self, request: pb.AuthorizeRequest, context: Context) -> pb.AuthorizeResponse:
        if await self._mishaps.refuses(Target.AUTHORIZE, lambda: {request.merchant_id}, context):
            return pb.AuthorizeResponse()
        return await self._authorize.single(request, context)

    async def BatchAuthorize(
        self, request: pb.BatchAuthorizeRequest, context: Context
    ) -> pb.BatchAuthorizeResponse:
        if await self._mishaps.refuses(Target.AUTHORIZE, lambda: messages.merchants_of(request), context):
            return pb.BatchAuthorizeResponse()
        response: pb.BatchAuthorizeResponse = await self._authorize.batch(request, context)
        return response

    async def Void(self, request: pb.VoidRequest, context: Context) -> pb.VoidResponse:
        if await self._mishaps.refuses(Target.VOID, lambda: {request.merchant_id}, context):
            return pb.VoidResponse()
        return await self._void.single(request, context)

    async def BatchVoid(self, request: pb.BatchVoidRequest, context: Context) -> pb.BatchVoidResponse:
        if await self._mishaps.refuses(Target.VOID, lambda: messages.merchants_of(request), context):
            return pb.BatchVoidResponse()
        response: pb.BatchVoidResponse = await self._void.batch(request, context)
        return response

    async def Capture(self, request: pb.CaptureRequest, context: Context) -> pb.CaptureResponse:
        response: pb.CaptureResponse = await self._movements.single(Kind.CAPTURE, request, context)
        return response

    async def BatchCapture(
        self, request: pb.BatchCaptureRequest, context: Context
    ) -> pb.BatchCaptureResponse:
        response: pb.BatchCaptureResponse = await self._movements.batch(Kind.CAPTURE, request, context)
        return response

    async def Refund(self, request: pb.RefundRequest, context: Context) -> pb.RefundResponse:
        response: pb.RefundResponse = await self._movements.single(Kind.REFUND, request, context)
        return response

    async def BatchRefund(self, request: pb.BatchRefundRequest, context: Context) -> pb.BatchRefundResponse:
        response: pb.BatchRefundResponse = await self._movements.batch(Kind.REFUND, request, context)
        return response

    async def IncrementAuthorization(
        self, request: pb.IncrementAuthorizationRequest, context: Context
    ) -> pb.IncrementAuthorizationResponse:
        response: pb.IncrementAuthorizationResponse = await self._movements.single(
            Kind.INCREMENT, request, context
        )
        return response

    async def BatchIncrementAuthorizations(
        self, request: pb.BatchIncrementAuthorizationsRequest, context: Context
    ) -> pb.BatchIncrementAuthorizationsResponse:
        response: pb.BatchIncrementAuthorizationsResponse = await self._movements.batch(
            Kind.INCREMENT, request, context
        )
        return response

    async def LookupByKey(self, request: pb.LookupByKeyRequest, context: Context) -> pb.LookupByKeyResponse:
        if await self._mishaps.refuses(Target.LOOKUP, lambda: {request.merchant_id}, context):
            return pb.LookupByKeyResponse()
        (answer,) = await self._look_up([request])
        if isinstance(answer, PaymeshError):
            raise answer
        return answer

    async def BatchLookupByKey(
        self, request: pb.BatchLookupByKeyRequest, context: Context
    ) -> pb.BatchLookupByKeyResponse:
        count = len(request.items)
        if not 1 <= count <= BATCH_SIZE_MAX:
            raise Invalid.field("items", f"has {count} items; it must have from 1 to {BATCH_SIZE_MAX:,}")
        merchants = [item.merchant_id for item in request.items]
        if await self._mishaps.refuses(Target.LOOKUP, lambda: merchants, context):
            return pb.BatchLookupByKeyResponse()
        return pb.BatchLookupByKeyResponse(
            results=[
                pb.LookupByKeyResult(failure=to_failure(answer))
                if isinstance(answer, PaymeshError)
                else pb.LookupByKeyResult(response=answer)
                for answer in await self._look_up(request.items)
            ]
        )

    async def CancelByKey(self, request: pb.CancelByKeyRequest, context: Context) -> pb.CancelByKeyResponse:
        if await self._mishaps.refuses(Target.CANCEL, lambda: {request.merchant_id}, context):
            return pb.CancelByKeyResponse()
        merchant_id, key = request.merchant_id, request.idempotency_key
        checks = Checks()
        checks.text("merchant_id", merchant_id)
        checks.done()
        check_key(key)
        ended = await self._mishaps.on_one(Target.CANCEL, merchant_id, lambda: self._cancel(merchant_id, key))
        return pb.CancelByKeyResponse(authorization=messages.message_of(ended))

    async def _handle_authorize(
        self, commands: Sequence[Command[AuthorizeWish]], deadline: Deadline
    ) -> Sequence[Answer[pb.AuthorizeResponse] | Failed | Pending[pb.AuthorizeResponse]]:
        return await self._mishaps.on_set(
            Target.AUTHORIZE, commands, deadline, self._carry_out_authorize, lambda wish: wish.card.delay_ms
        )

    async def _handle_void(
        self, commands: Sequence[Command[VoidWish]], deadline: Deadline
    ) -> Sequence[Answer[pb.VoidResponse] | Failed | Pending[pb.VoidResponse]]:
        return await self._mishaps.on_set(Target.VOID, commands, deadline, self._carry_out_void)

    async def _carry_out_authorize(
        self, commands: Sequence[Command[AuthorizeWish]], deadline: Deadline
    ) -> list[Outcome[pb.AuthorizeResponse]]:
        """One statement when all keys are new: the row of an authorization is also the record of its key. It travels
        with BEGIN and COMMIT; only rows that are never changed are read afterwards."""
        at = now()
        made: dict[Identity, Operation] = {}
        for c in commands:
            identity = (c.merchant_id, c.key)
            if identity not in made:
                made[identity] = domain.authorize(c.request, c.resource_id, c.key, c.fingerprint, at)

        async def write(tx: Transaction) -> Sent:
            return store.insert_operations(tx, list(made.values()))

        written = await self._database.transact(write, deadline)
        standing = made
        if await written.count() < len(made):
            with committed():
                standing = await store.find_operations(self._database, made)
        return [messages.authorize_outcome(c, standing[(c.merchant_id, c.key)]) for c in commands]

    async def _carry_out_void(
        self, commands: Sequence[Command[VoidWish]], deadline: Deadline
    ) -> list[Outcome[pb.VoidResponse]]:
        asked = [KeyedVoid(c.request, c.key, c.fingerprint) for c in commands]
        targets = [(c.merchant_id, c.request.authorization_id) for c in commands]
        keys = [(c.merchant_id, c.key) for c in commands]
        at = now()
        fresh: dict[Identity, Operation] = {}
        standing: dict[Identity, Operation] = {}
        holds: dict[Identity, Hold] = {}

        async def work(tx: Transaction) -> None:
            nonlocal fresh, standing, holds
            holds = await store.lock_holds(tx, targets)
            before = await store.find_operations(tx, keys)
            fresh = domain.void_in_order(asked, before, holds, at)
            await store.insert_all(tx, list(fresh.values()))
            standing = before | fresh

        await self._database.transact(work, deadline)
        outcomes: list[Outcome[pb.VoidResponse]] = []
        for c in commands:
            operation = standing.get((c.merchant_id, c.key))
            # The first command of a new key made the operation; the ones behind it repeat it.
            replayed = fresh.pop((c.merchant_id, c.key), None) is None
            outcomes.append(
                Failed(domain.unknown_authorization(c.request.authorization_id))
                if operation is None
                else messages.void_outcome(c, operation, holds, replayed)
            )
        return outcomes

    async def _cancel(self, merchant_id: str, key: str) -> Authorization:
        async def work(tx: Transaction) -> Authorization:
            at = now()
            never = domain.cancelled(merchant_id, key, at)
            if await store.insert_operations(tx, [never]).count():
                return domain.authorization(never)
            made = (await store.find_operations(tx, [(merchant_id, key)]))[(merchant_id, key)]
            if made.kind is not Kind.AUTHORIZE:
                raise Refused("NOT_AN_AUTHORIZATION", f"the key {key!r} is that of a {made.kind.lower()}")
            if made.result is not Result.APPROVED:
                return domain.authorization(made)
            identity = (merchant_id, made.operation_id)
            hold = (await store.lock_holds(tx, [identity]))[identity]
            if hold.captured_minor:
                raise Refused("AUTHORIZATION_CAPTURED", f"{hold.captured_minor} of {key!r} were captured")
            if not hold.voided:
                await store.insert_all(tx, [domain.void(hold, key=None, fingerprint=b"", at=at)])
            return domain.authorization(made, voided=True)

        return await self._database.transact(work)

    async def _look_up(
        self, requests: Sequence[pb.LookupByKeyRequest]
    ) -> list[pb.LookupByKeyResponse | PaymeshError]:
        faults = [messages.lookup_fault(request) for request in requests]
        struck = await self._mishaps.on_reads(Target.LOOKUP, [request.merchant_id for request in requests])
        errors = [invalid or lost for invalid, lost in zip(faults, struck, strict=True)]
        keys = [(request.merchant_id, request.idempotency_key) for request in requests]
        asked = [key for key, error in zip(keys, errors, strict=True) if error is None]
        found = await store.find_by_key(self._database, asked) if asked else {}
        return [error or messages.looked_up(found.get(key)) for key, error in zip(keys, errors, strict=True)]
