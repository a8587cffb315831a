import { VideoloomError } from '../../proto/errors.ts';

/**
 * Wrong use of the compiled engine. Codes: `XLA_READ_IN_TRACE`, `XLA_HOST_OP_IN_TRACE`, `XLA_TENSOR_LEAKED`,
 * `XLA_CALL_IN_TRACE`, `XLA_TENSOR_DISPOSED`, `XLA_DONATED_TWICE`, `XLA_ALREADY_OPEN`, `XLA_UNSUPPORTED_DTYPE`,
 * `XLA_INDEX_OUT_OF_RANGE`, `XLA_CLOSED`, `XLA_MESH_INVALID`, `XLA_SHARDING_INVALID`, `XLA_TOO_FEW_DEVICES`,
 * `XLA_TOO_FEW_THREADS`, `XLA_LAYER_CAPTURE`.
 */
export class EngineError extends VideoloomError {}
