"""The steps of each flow, as the terminal shows them: names of timed tasks (flows/steps.py), and what they do."""

from tasks.core.progress import Step

START = Step("start", "import libraries, start Prefect's server")
READ = Step("read data", "parse the rows and write snapshots")
CHECK = Step("check data", "run the gate")
RETRAIN = (
    START,
    READ,
    Step("find encoder", "locate or download it; open the MLflow run", ("find teacher",)),
    CHECK,
    Step("check encoder", "train and export it for one step"),
    Step("split", "set validation sentences apart"),
    Step("fine-tune", "train; validate after each epoch"),
    Step("export", "write ONNX graphs, compare them with torch"),
    Step("measure", "MCC of candidate and champion"),
    Step("judge", "apply the promotion policy"),
    Step("document", "draw charts, write report and model card"),
    Step("register", "register the version, carry the verdict out", ("promote",)),
)
STEPS = {
    "retrain": RETRAIN,
    "watch": (START, READ, CHECK, Step("retrain", "only where it is due", tuple(step.name for step in RETRAIN))),
    "sweep": (
        *RETRAIN[:6],
        Step("trials", "try each combination, compare validation MCC", ("log to MLflow", "draw")),
        Step("retrain", "with the best settings", tuple(step.name for step in RETRAIN[6:])),
    ),
    "score": (
        START,
        Step("find model", "locate or download the model"),
        Step("score", "read sentences, write labels and probabilities"),
    ),
}
