// Each of these registers its kernels with tfjs when it is loaded.
import './binary.ts';
import './create.ts';
import './indexing.ts';
import './matmul.ts';
import './normalize.ts';
import './reduce.ts';
import './shape.ts';
import './unary.ts';
