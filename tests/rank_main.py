"""One rank of a distributed test: a process that runs the function named on its standard input."""

import importlib.util
import os
import pickle
import sys


def main() -> None:
    sys.path.append(os.path.join(os.path.dirname(__file__), "shared"))
    path, name, arguments = pickle.load(sys.stdin.buffer)
    spec = importlib.util.spec_from_file_location("test_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch.distributed as dist

    dist.init_process_group("gloo")
    result = getattr(module, name)(*arguments)
    dist.barrier()
    sys.stdout.buffer.write(b"RESULT" + pickle.dumps(result))
    sys.stdout.buffer.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo sometimes aborts in the interpreter's teardown


if __name__ == "__main__":
    main()
