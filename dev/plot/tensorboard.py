#!/usr/bin/env python3
"""Mirrors a run's metrics.jsonl into TensorBoard, or into Weights & Biases, while it goes on or afterwards.

    dev/plot/tensorboard.py [--follow] RUN [--logdir DIR]     then: tensorboard --logdir DIR
    dev/plot/tensorboard.py [--follow] RUN --wandb [PROJECT]  WANDB_MODE=offline writes to ./wandb and needs no account

RUN is a run's directory (its --out) or its metrics.jsonl. Every number of a step becomes a scalar of its name. --follow
waits for more steps until Ctrl-C. Steps that a resumed run makes again replace those that were mirrored (in W&B they stand
beside them). Needs the package tensorboard or wandb: scripts/setup.sh --plot installs both.
"""

import argparse
import os
import sys
import time

from runs import Follower, RunError, find_metrics

# In its own directory this file would hide the package of its name.
sys.path = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]

POLL = 1.0  # seconds between looks at the file


def scalars(step):
    """The numbers of a step; selection is 0 or 1."""
    values = {key: value for key, value in step.items() if isinstance(value, (int, float)) and key != "step"}
    return values | {"selection": int(step["selection"] == "on")}


class TensorBoard:
    def __init__(self, directory):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        self.event_pb2, self.summary_pb2 = event_pb2, summary_pb2
        self.writer, self.last = EventFileWriter(directory), 0

    def write(self, step):
        number = step["step"]
        if number <= self.last:  # has TensorBoard drop this step and all after it
            start = self.event_pb2.SessionLog(status=self.event_pb2.SessionLog.START)
            self.writer.add_event(self.event_pb2.Event(wall_time=time.time(), step=number, session_log=start))
        self.last = number
        values = [self.summary_pb2.Summary.Value(tag=key, simple_value=value) for key, value in scalars(step).items()]
        self.writer.add_event(self.event_pb2.Event(wall_time=time.time(), step=number,
                                                   summary=self.summary_pb2.Summary(value=values)))

    def flush(self):
        self.writer.flush()

    def close(self):
        self.writer.close()


class WandB:
    """Its steps only go forward, so that those made again stand beside the first."""

    def __init__(self, project, name):
        import wandb
        self.run = wandb.init(project=project, name=name)
        self.run.define_metric("*", step_metric="step")

    def write(self, step):
        self.run.log(scalars(step) | {"step": step["step"]})

    def flush(self):
        pass

    def close(self):
        self.run.finish()


def mirror(follower, sink, follow):
    count = 0
    try:
        while True:
            steps = follower.look()
            for step in steps:
                sink.write(step)
            sink.flush()
            count += len(steps)
            if not follow:
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        pass
    sink.close()
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--logdir", metavar="DIR", help="of TensorBoard (default: RUN/tensorboard)")
    parser.add_argument("--wandb", metavar="PROJECT", nargs="?", const="train_lighthouse",
                        help="into Weights & Biases instead (default: %(const)s)")
    arguments = parser.parse_args()
    try:
        path = find_metrics(arguments.run)
        directory = arguments.logdir or os.path.join(os.path.dirname(path), "tensorboard")
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        sink = WandB(arguments.wandb, name) if arguments.wandb else TensorBoard(directory)
        steps = mirror(Follower(path), sink, arguments.follow)
    except ImportError as error:
        print(f"error: {error.name} is missing: scripts/setup.sh --plot installs it", file=sys.stderr)
        return 1
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{steps} steps are in {'Weights & Biases' if arguments.wandb else directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
