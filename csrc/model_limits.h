/* model_limits.h: the largest model that the engine runs; storyllamas/slm/limits.py writes it. */

#ifndef SL_MODEL_LIMITS_H
#define SL_MODEL_LIMITS_H

enum {
    SL_MAX_DIMENSION = 1048576, /* every size but the next two, and heads * head_dim */
    SL_MAX_LAYERS = 4096,
    SL_MAX_CONTEXT = 1048576,
    SL_MAX_GROUP_SIZE = 16384,      /* the dot product of a group must fit in 32 bits */
    SL_MAX_CHAT_TEMPLATE = 1048576, /* bytes */
};

#endif
