#!/usr/bin/env bash
# great_expectations 1.24.1 with pandas 3.1.1; the control is the same with pandas 2.3.3. Both versions are admitted.
#
# Behaviour: pandas 3 gives text columns the dtype `str`. `ExpectColumnValuesToBeInTypeList` fails on them whatever the
# list holds, also where it holds the very type that the result reports as observed. `["object", "str"]`, which one
# would write to be right under pandas 2 and 3, passes under pandas 2 alone. Its sibling `ExpectColumnValuesToBeOfType`
# with `type_="str"` passes under both. The one compares the column's dtype with the list, the other the dtype's type.
#
# Seen:
#   pandas 3.1.1: dtype str, of type 'str' passes True, in list ['object', 'str'] passes False (observed str)
#   pandas 3.1.1: in a list of 12 names of text types passes False (observed str)
#   pandas 2.3.3: dtype object, of type 'str' passes True, in list ['object', 'str'] passes True (observed None)
#   pandas 2.3.3: in a list of 12 names of text types passes True (observed None)
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
cat > check.py <<'PY'
import great_expectations as gx, great_expectations.expectations as gxe, pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig

context = gx.get_context(mode="ephemeral")
context.variables.progress_bars = ProgressBarsConfig(globally=False)
rows = pd.DataFrame({"sentence": ["The cat sat.", "The cat have sat."]})
asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
names = ["str", "object", "string", "StringDtype", "string[python]", "string[pyarrow]", "str_", "object_", "O", "U",
         "ArrowDtype", "bytes"]
of_type = batch.validate(gxe.ExpectColumnValuesToBeOfType(column="sentence", type_="str"))
few, many = (batch.validate(gxe.ExpectColumnValuesToBeInTypeList(column="sentence", type_list=types))
             for types in (["object", "str"], names))
assert not any(result.exception_info["raised_exception"] for result in (of_type, few, many))
observed = [f"passes {result.success} (observed {result.result.get('observed_value')})" for result in (few, many)]
print(f"pandas {pd.__version__}: dtype {rows['sentence'].dtype}, of type 'str' passes {of_type.success}, "
      f"in list ['object', 'str'] {observed[0]}")
print(f"pandas {pd.__version__}: in a list of {len(names)} names of text types {observed[1]}")
PY
for pandas in 3.1.1 2.3.3; do
  env/bin/pip install --quiet --disable-pip-version-check great_expectations==1.24.1 "pandas==$pandas" numpy==2.4.6 \
    > pip.log 2>&1 || { cat pip.log; exit 2; }
  env/bin/python -W ignore check.py | tee -a seen
done
diff seen <(sed -n 's/^#   \(pandas\)/\1/p' "$script")
