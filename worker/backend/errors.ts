import { VideoloomError } from '../../proto/errors.ts';

/**
 * Wrong use of the compiled engine. Codes: `XLA_READ_IN_TRACE`, `XLA_SYNC_READ`, `XLA_TENSOR_LEAKED`,
 * `XLA_CALL_IN_TRACE`, `XLA_TENSOR_DISPOSED`, `XLA_DONATED_TWICE`, `XLA_ALREADY_OPEN`, `XLA_UNSUPPORTED_DTYPE`,
 * `XLA_CLOSED`.
 */
export class EngineError extends VideoloomError {}
