// Caffe's SGD for one weight. The learning rate is inside the velocity.
#pragma once

#include "math/host_device.h"

namespace fasttransfer {

struct SgdRule {
  float lr, momentum, decay;
};

FT_HOST_DEVICE inline void sgd(SgdRule rule, float gradient, float& weight, float& velocity) {
  velocity = rule.momentum * velocity + rule.lr * (gradient + rule.decay * weight);
  weight -= velocity;
}

}  // namespace fasttransfer
