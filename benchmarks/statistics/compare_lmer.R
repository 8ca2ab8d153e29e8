# Fit one mixed model with lmerTest, and write its coefficients; see compare_lmer.py.
#
#     Rscript compare_lmer.R TABLE.csv FORMULA RESULT.csv
arguments <- commandArgs(trailingOnly = TRUE)
suppressMessages(library(lmerTest))
data <- read.csv(arguments[1], stringsAsFactors = TRUE)
# Messages of convergence are kept in the fit.
fit <- suppressWarnings(suppressMessages(lmer(as.formula(arguments[2]), data, REML = TRUE)))
table <- coef(summary(fit))
colnames(table) <- c("estimate", "se", "df", "t", "p")
messages <- paste(unlist(fit@optinfo$conv$lme4$messages), collapse = "; ")
result <- data.frame(coefficient = rownames(table), table, messages = messages)
write.csv(result, arguments[3], row.names = FALSE)
