"""A small table without randomness, which R makes in the same way."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: The same table in R.
IN_R = """
i <- 0:40
d <- data.frame(group=c("CN","MCI","AD")[(i %% 3)+1], sex=c("M","F")[((i %/% 4) %% 2)+1],
                age=55+(i*7)%%31, code=(2*i+i%/%5)%%3+1, apoe=((i*5)%%7 > 3)+0)
d$group <- factor(d$group, c("CN","MCI","AD"))
d$sex <- factor(d$sex, c("F","M"))
ill <- d$group == "AD"
d$volume <- 3000 - 10*(d$age-70) - 200*ill - 15*(d$age-70)*ill + 100*sin(i*i)
"""


def table_of_r() -> pd.DataFrame:
    i = np.arange(41)
    group = np.array(["CN", "MCI", "AD"])[i % 3]
    age = 55.0 + (i * 7) % 31
    is_ill = group == "AD"
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{number:02d}" for number in i],
            "scan": [f"sub-{number:02d}" for number in i],
            "status": "done",
            "group": pd.Categorical(group, ["CN", "MCI", "AD"]),
            "sex": np.array(["M", "F"])[(i // 4) % 2],
            "age": age,
            "code": ((2 * i + i // 5) % 3 + 1).astype(float),
            "apoe": ((i * 5) % 7 > 3).astype(float),
            "icv_mm3": 1.5e6,
            "volume_mm3_L_whole": 3000
            - 10 * (age - 70)
            - 200 * is_ill
            - 15 * (age - 70) * is_ill
            + 100 * np.sin(i * i),
        }
    )
